import IaaS
import TestSupport
import Testing
import bmctl

@Suite("Detach key")
struct DetachKeyTests {
  @Test("Keys have the names that other programs use")
  func names() {
    #expect(DetachKey("ctrl-]")?.byte == 0x1D)
    #expect(DetachKey("^]")?.byte == 0x1D)
    #expect(DetachKey("Ctrl+A")?.byte == 1)
    #expect(DetachKey("^q")?.byte == 17)
    #expect(DetachKey("none")?.byte == nil)
    #expect(DetachKey("ctrl-]")?.name == "Ctrl-]")
  }

  @Test(
    "Keys that are typed all the time are refused",
    arguments: ["^I", "^M", "^J", "^[", "", "x", "^", "^1", "ctrl-", "^ab", "^é"])
  func refused(text: String) {
    #expect(DetachKey(text) == nil)
  }

  @Test("What comes before the key is typed, what comes after it is not")
  func filter() throws {
    var filter = DetachFilter(key: try #require(DetachKey("^]")))
    #expect(filter.feed(Array("ls\r".utf8)) == .init(forward: Array("ls\r".utf8), detached: false))
    #expect(filter.feed([0x61, 0x1D, 0x62]) == .init(forward: [0x61], detached: true))
    #expect(filter.feed([0x63]) == .init(forward: [], detached: true))
  }

  @Test("Without a key every byte passes")
  func none() throws {
    var filter = DetachFilter(key: try #require(DetachKey("none")))
    let all = Array(UInt8.min...UInt8.max)
    #expect(filter.feed(all) == .init(forward: all, detached: false))
  }

  @Test("However the bytes are cut into pieces, the same ones pass", arguments: [UInt64(1), 2, 3])
  func pieces(seed: UInt64) throws {
    var random = SeededGenerator(seed: seed)
    let key = try #require(DetachKey("^]"))
    for _ in 0..<200 {
      let bytes = random.bytes(Int.random(in: 0...600, using: &random))
      var filter = DetachFilter(key: key)
      var passed: [UInt8] = []
      var rest = bytes[...]
      var detached = false
      while !rest.isEmpty {
        let piece = rest.prefix(Int.random(in: 1...64, using: &random))
        rest = rest.dropFirst(piece.count)
        let result = filter.feed(piece)
        passed += result.forward
        detached = result.detached
      }
      #expect(passed == Array(bytes.prefix { $0 != 0x1D }))
      #expect(detached == bytes.contains(0x1D))
    }
  }

  @Test("A console's address is a socket's path that the kernel takes")
  func addresses() {
    #expect(ConsoleAddress("unix:/run/c.sock")?.path == "/run/c.sock")
    #expect(ConsoleAddress("unix:relative") == nil)
    #expect(ConsoleAddress("/run/c.sock") == nil)
    #expect(ConsoleAddress("unix:/" + String(repeating: "x", count: 106))?.path.utf8.count == 107)
    #expect(ConsoleAddress("unix:/" + String(repeating: "x", count: 107)) == nil)
    #expect(ConsoleAddress("unix:/a\0b") == nil)
  }
}
