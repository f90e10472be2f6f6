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

  @Test(arguments: [
    "", ":", "80:", "0:80", "80:0", "65536", "1:2:3", "-1:2", "+1:2", "a:b", "80 :80", "999999:1", "127.0.0.1:80",
  ]) func whatIsNoPairIsRefused(text: String) {
    #expect(PortPair(text) == nil)
  }
}
