import Testing
import bmctl

@Suite struct PortForwardTests {
  @Test func aPairIsHereAndThere() throws {
    func pair(_ text: String) throws -> [Int] {
      let pair = try #require(PortPair(text))
      return [pair.local, pair.remote]
    }
    #expect(try pair("8080:80") == [8080, 80])
    #expect(try pair("22") == [22, 22])
    #expect(try pair(":5432") == [0, 5432])
  }

  @Test func addressesToListenAt() throws {
    func texts(_ text: String) -> [String]? { ListenAddresses(text)?.addresses.map(\.text) }
    #expect(texts("localhost") == ["127.0.0.1", "::1"])
    #expect(ListenAddresses("localhost")?.addresses.map(\.isOptional) == [false, true])
    #expect(texts("0.0.0.0") == ["0.0.0.0"])
    #expect(texts("127.0.0.1,localhost,10.0.0.1") == ["127.0.0.1", "::1", "10.0.0.1"])
    for bad in ["", ",", "127.0.0.1,", "example.org", "127.0.0.1 ", "10.0.0", "127.0.0.1:80"] {
      #expect(texts(bad) == nil, "\(bad)")
    }
    #expect(texts((1...9).map { "10.0.0.\($0)" }.joined(separator: ",")) == nil)
  }

  @Test(arguments: [
    "", ":", "80:", "0:80", "80:0", "65536", "1:2:3", "-1:2", "+1:2", "a:b", "80 :80", "999999:1", "127.0.0.1:80",
  ]) func whatIsNoPairIsRefused(text: String) {
    #expect(PortPair(text) == nil)
  }
}
