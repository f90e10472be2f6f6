import Kubernetes
import TestSupport
import Testing

@Suite struct QuantityTests {
  @Test(
    arguments: [
      ("10Gi", Int64(10) << 30), ("1.5G", 1_500_000_000), ("100M", 100_000_000), ("0", 0), ("1", 1), ("1e3", 1000),
      ("1E3", 1000), ("12E", 0), ("500m", 1), ("1001m", 2), ("0.5Gi", 512 << 20), ("1Ki", 1024), ("+2k", 2000),
      (".5Mi", 512 << 10), ("5.", 5), ("3u", 1), ("7n", 1), ("1.0000000001", 2), ("8Pi", Int64(8) << 50),
    ])
  func parsesToWholeUnitsRoundedUp(text: String, bytes: Int64) {
    // 12E is beyond 64 bits of units and so refused.
    #expect(Quantity(text)?.bytes == (text == "12E" ? nil : bytes))
  }

  @Test(
    arguments: [
      "", " ", "Gi", "1 Gi", "1gi", "1KiB", "--1", "1.2.3", "1e", "1e99999", "abc", "1_000", "0x10", "1Gi ", "٣",
      "99999999999999999999999999999999999999999", "9223372036854775808",
    ])
  func refusesWhatIsNoQuantity(text: String) { #expect(Quantity(text) == nil) }

  @Test(
    arguments: [
      ("1024Mi", "1Gi"), ("10Gi", "10Gi"), ("1.5Gi", "1536Mi"), ("1000M", "1G"), ("1500m", "1500m"), ("0.5", "500m"),
      ("1023", "1023"), ("1e3", "1k"), ("0Gi", "0"), ("2048", "2048"), ("-5k", "-5k"),
    ])
  func printsTheCanonicalForm(text: String, canonical: String) {
    #expect(Quantity(text)?.description == canonical)
  }

  @Test func bytesPrintWithBinarySuffixes() {
    #expect(Quantity(bytes: 10 << 30).description == "10Gi")
    #expect(Quantity(bytes: (10 << 30) + 1).description == "10737418241")
    #expect(Quantity(bytes: 0).description == "0")
    #expect(Quantity(bytes: 512).description == "512")
  }

  @Test func comparesByAmountWhateverTheSuffix() {
    #expect(Quantity("1Gi") == Quantity("1024Mi"))
    #expect(Quantity("1G")! < Quantity("1Gi")!)
    #expect(Set([Quantity("1k")!, Quantity("1000")!]).count == 1)
  }

  @Test func everyPrintedQuantityParsesToItself() {
    var random = SeededGenerator(seed: 7)
    for _ in 0..<2000 {
      let quantity = Quantity(bytes: Int64(truncatingIfNeeded: random.next() >> random.next() % 60) & .max)
      #expect(Quantity(quantity.description) == quantity)
    }
  }

  @Test func randomTextNeverTraps() {
    var random = SeededGenerator(seed: 8)
    let alphabet = Array("0123456789.eE+-KMGTPinum ".utf8)
    for _ in 0..<20_000 {
      let text = (0..<Int(random.next() % 14)).map { _ in alphabet[Int(random.next() % UInt64(alphabet.count))] }
      _ = Quantity(String(decoding: text, as: UTF8.self)).map { ($0.bytes, $0.description) }
    }
  }
}
