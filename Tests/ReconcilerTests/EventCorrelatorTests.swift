import Kubernetes
import Reconciler
import Testing

@Suite struct EventCorrelatorTests {
  private let start = ContinuousClock.now
  private let wall = Timestamp("2026-01-01T00:00:00Z")!

  private func occurrence(_ message: String, object: String = "o") -> EventCorrelator.Occurrence {
    .init(
      regarding: ObjectReference(kind: "K", namespace: "n", name: object, uid: object), type: .normal, reason: "R",
      message: message)
  }

  private struct Refused: Error {}

  private func record(
    _ correlator: inout EventCorrelator, _ occurrence: EventCorrelator.Occurrence, _ now: ContinuousClock.Instant
  ) throws -> EventCorrelator.Record {
    guard let record = correlator.correlate(occurrence, now: now, wallClock: wall) else { throw Refused() }
    return record
  }

  @Test func theSameEventAgainRaisesTheCount() throws {
    var correlator = EventCorrelator(component: "c")
    let first = try record(&correlator, occurrence("m"), start)
    #expect(first.count == 1)
    correlator.written(first.name, count: 1, wrote: first.new)
    let second = try record(&correlator, occurrence("m"), start)
    #expect(second.name == first.name)
    #expect(second.count == 2)
    #expect(second.new == 1)
    #expect(second.namespace == "n")
  }

  @Test func theNameIsTheSameAfterARestart() {
    var one = EventCorrelator(component: "c")
    var other = EventCorrelator(component: "c")
    let name = one.correlate(occurrence("m"), now: start, wallClock: wall)?.name
    let again = other.correlate(occurrence("m"), now: start, wallClock: wall)?.name
    let different = one.correlate(occurrence("x"), now: start, wallClock: wall)?.name
    #expect(name == again)
    #expect(name != different)
  }

  @Test func oneObjectCannotFloodAndOthersAreNotHeldBack() throws {
    var correlator = EventCorrelator(component: "c")
    var written = 0
    for index in 0..<1000 where correlator.correlate(occurrence("m\(index)"), now: start, wallClock: wall) != nil {
      written += 1
    }
    #expect(written == 25)
    #expect(correlator.dropped == 975)
    _ = try record(&correlator, occurrence("m", object: "other"), start)
    _ = try record(&correlator, occurrence("m"), start + .seconds(61))
  }

  @Test func manySimilarMessagesBecomeOneRecord() {
    var correlator = EventCorrelator(component: "c")
    var names: Set<String> = []
    for index in 0..<25 {
      if let record = correlator.correlate(occurrence("disk \(index)"), now: start, wallClock: wall) {
        names.insert(record.name)
      }
    }
    #expect(names.count == 11)
  }

  @Test func countsOfDroppedOccurrencesAreMadeUpFor() throws {
    var limits = EventCorrelator.Limits()
    limits.burst = 1
    var correlator = EventCorrelator(component: "c", limits: limits)
    let first = try record(&correlator, occurrence("m"), start)
    for _ in 0..<10 {
      let refused = correlator.correlate(occurrence("m"), now: start, wallClock: wall)
      #expect(refused == nil)
    }
    correlator.written(first.name, count: 1, wrote: first.new)
    let later = try record(&correlator, occurrence("m"), start + .seconds(61))
    #expect(later.count == 12)
  }
}
