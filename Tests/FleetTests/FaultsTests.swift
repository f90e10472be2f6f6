import Fleet
import Testing

@Suite("The times and faults of a simulated fleet")
struct FaultsTests {
  @Test("A triangular time stays within its bounds and has its mean")
  func triangle() throws {
    let delay = try #require(TriangularDelay("1,2,6"))
    var random = SeededRandom(seed: 7)
    let samples = (0..<20_000).map { _ in delay.sample(&random) / .seconds(1) }
    #expect(samples.allSatisfy { (1...6).contains($0) })
    #expect(abs(samples.reduce(0, +) / 20_000 - 3) < 0.05, "the mean is a third of the sum")
    #expect(TriangularDelay("2,1,6") == nil)
    #expect(TriangularDelay("-1") == nil)
    #expect(TriangularDelay("nan") == nil)
    #expect(TriangularDelay("0.5")?.sample(&random) == .seconds(0.5))
  }

  @Test("Faults come as often as they should, the same for the same seed, and mistakes are named")
  func verdicts() throws {
    let faults = try Faults("hang=0.1,error=0.2,lost=0.1")
    func draw(_ seed: UInt64) -> [Faults.Verdict] {
      var random = SeededRandom(seed: seed, part: "bmc sim-0000")
      return (0..<10_000).map { _ in faults.verdict(&random) }
    }
    let verdicts = draw(1)
    #expect(verdicts == draw(1))
    #expect(verdicts != draw(2))
    for (verdict, share) in [(Faults.Verdict.hang, 0.1), (.fail, 0.2), (.lose, 0.1), (.answer, 0.6)] {
      #expect(abs(Double(verdicts.count { $0 == verdict }) / 10_000 - share) < 0.02)
    }
    for (text, word) in [("hang=2", "share"), ("bang=1", "no fault"), ("hang", "NAME=NUMBER"), ("hang=-1", "NAME")] {
      let mistake = #expect(throws: Faults.Mistake.self) { try Faults(text) }
      #expect(mistake?.description.contains(word) == true)
    }
  }
}
