import CLinux
import Glibc
import JSON
import JSONRPC
import TestSupport
import Testing

import SoftDPU

/// Disks over NBD, with other people's clients: libnbd's nbdinfo and nbdcopy, QEMU's qemu-io and qemu-img.
@Suite struct NBDTests {
  static func io(_ uri: String, _ commands: String...) async throws -> String {
    try await ChildProcess.run(
      "qemu-io", ["-f", "raw", uri] + commands.flatMap { ["-c", $0] }, within: .seconds(60))
  }

  /// What the client said where it failed.
  static func failingIO(_ uri: String, _ commands: String...) async throws -> String {
    let run = try ChildProcess("qemu-io", ["-f", "raw", uri] + commands.flatMap { ["-c", $0] })
    let exit = try await run.waitForExit(within: .seconds(60))
    #expect(exit != .code(0))
    return run.output
  }

  static func export(_ target: Target, _ device: String) async throws -> String {
    let socket = target.directory.file("\(device).sock")
    _ = try await target.client.call("nbd_start_disk", ["bdev_name": .string(device), "nbd_device": .string(socket)])
    return "nbd+unix:///?socket=\(socket)"
  }

  @Test(arguments: Target.Place.allCases) func servesOtherPeoplesClients(_ place: Target.Place) async throws {
    let target = try Target(place, megabytes: 64)
    try await target.createVolume()
    let uri = try await Self.export(target, "disk")

    let info = try await ChildProcess.run("nbdinfo", ["--json", uri], within: .seconds(20))
    let export = try JSONValue.parse(info)["exports"]?[0]
    #expect(export?["export-size"]?.int64Value == 64 << 20)
    #expect(export?["block_size_minimum"]?.intValue == 512)
    #expect(export?["can_trim"]?.boolValue == true && export?["can_fua"]?.boolValue == true)

    let output = try await Self.io(
      uri, "write -P 17 1M 3M", "read -P 17 1M 3M", "write -f -P 18 513k 1536", "read -P 18 513k 1536",
      "discard 2M 64k", "read -P 0 2M 64k", "write -z 3M 64k", "read -P 0 3M 64k", "flush", "write -P 19 40M 20M",
      "read -P 19 40M 20M")
    #expect(!output.contains("failed") && !output.contains("Pattern"))
    #expect(target.bytes(at: 1 << 20, count: 4096) == [UInt8](repeating: 17, count: 4096))

    // What nothing was written to is a hole, and is copied as one.
    let map = try JSONValue.parse(
      try await ChildProcess.run("nbdinfo", ["--map", "--json", uri], within: .seconds(20)))
    #expect(map.arrayValue?.contains { $0["type"]?.intValue == 3 } == true)
    #expect(map.arrayValue?.contains { $0["type"]?.intValue == 0 } == true)
    let copy = target.directory.file("copy")
    try await ChildProcess.run("nbdcopy", [uri, copy], within: .seconds(60))
    let compared = try await ChildProcess.run("qemu-img", ["compare", "-f", "raw", "-F", "raw", uri, copy])
    #expect(compared.contains("identical"))
  }

  @Test func refusesWhatIsOutsideOrReadOnly() async throws {
    let target = try Target(.memory, megabytes: 1)
    try await target.createVolume(readOnly: true)
    let uri = try await Self.export(target, "disk")
    let run = try ChildProcess("qemu-io", ["-r", "-f", "raw", uri, "-c", "read 0 4k", "-c", "read 2M 4k"])
    _ = try await run.waitForExit(within: .seconds(20))
    #expect(run.output.contains("read 4096/4096"))
    _ = try await Self.failingIO(uri, "write 0 4k")
  }

  @Test func endsAndBeginsExports() async throws {
    let target = try Target(.memory)
    try await target.createVolume()
    let socket = target.directory.file("a.sock")
    let uri = try await Self.export(target, "disk")
    let at: JSONValue = ["bdev_name": "disk", "nbd_device": .string(target.directory.file("disk.sock"))]
    await expectCode(-16) { try await target.client.call("nbd_start_disk", at) }
    await expectCode(-19) {
      try await target.client.call("nbd_start_disk", ["bdev_name": "none", "nbd_device": .string(socket)])
    }
    await expectCode(-22) {
      try await target.client.call("nbd_start_disk", ["bdev_name": "disk", "nbd_device": "/dev/nbd0"])
    }
    await expectCode(-16) { try await target.client.call("bdev_aio_delete", ["name": "disk"]) }
    #expect(try await target.client.call("nbd_get_disks").arrayValue?.count == 1)

    // A client that reads as long as it is let.
    let client = target.client
    let reader = try ChildProcess(
      "qemu-img", ["bench", "-f", "raw", "-c", "2000000000", "-d", "1", "-s", "4096", uri])
    try await eventually("the client reads") {
      let value = try await client.call("bdev_get_iostat", ["name": "disk"])
      return (value["bdevs"]?[0]?["num_read_ops"]?.intValue ?? 0) > 100
    }
    _ = try await target.client.call("nbd_stop_disk", ["nbd_device": .string(target.directory.file("disk.sock"))])
    #expect(access(target.directory.file("disk.sock"), F_OK) != 0)
    #expect(try await target.client.call("nbd_get_disks").arrayValue?.isEmpty == true)
    _ = try await target.client.call("bdev_aio_delete", ["name": "disk"])
    #expect(try await reader.waitForExit(within: .seconds(20)) != .code(0), "its disk went away: \(reader.output)")
  }

  @Test func servesOverTCPWithSeveralExports() async throws {
    let target = try Target(.memory)
    try await target.createVolume()
    _ = try await target.client.call("bdev_malloc_create", ["name": "m", "block_size": 512, "num_blocks": 4096])
    let port = Int.random(in: 20000...29999)
    for device in ["disk", "m"] {
      _ = try await target.client.call(
        "nbd_start_disk",
        ["bdev_name": .string(device), "nbd_device": .string("nbd://127.0.0.1:\(port)/\(device)")])
    }
    let list = try await ChildProcess.run("nbdinfo", ["--list", "--json", "nbd://127.0.0.1:\(port)"])
    #expect(try JSONValue.parse(list)["exports"]?.arrayValue?.count == 2)
    _ = try await Self.io("nbd://127.0.0.1:\(port)/m", "write -P 5 0 1M", "read -P 5 0 1M")
    _ = try await target.client.call("nbd_stop_disk", ["nbd_device": .string("nbd://127.0.0.1:\(port)/m")])
    _ = try await Self.io("nbd://127.0.0.1:\(port)/disk", "write -P 6 0 1M", "read -P 6 0 1M")
  }

  /// Bytes that no client sends end the connection, or get an error, and never more.
  @Test func outlivesHostileClients() async throws {
    let target = try Target(.memory)
    try await target.createVolume()
    let uri = try await Self.export(target, "disk")
    var random = SystemRandomNumberGenerator()
    for round in 0..<200 {
      let fd = try UnixSocket.connect(path: target.directory.file("disk.sock"))
      var bytes: [UInt8] = []
      if round % 2 == 0 {
        // A sound negotiation first.
        bytes = [0, 0, 0, 3] + Array("IHAVEOPT".utf8) + [0, 0, 0, 1, 0, 0, 0, 0]
        for _ in 0..<8 {
          bytes += [0x25, 0x60, 0x95, 0x13, 0, UInt8.random(in: 0...31), 0, UInt8.random(in: 0...9)]
          bytes += (0..<16).map { _ in UInt8.random(in: 0...255, using: &random) }
          bytes += [0, 0, UInt8.random(in: 0...255), 0]
        }
      }
      bytes += (0..<Int.random(in: 0...400)).map { _ in UInt8.random(in: 0...255, using: &random) }
      _ = bytes.withUnsafeBytes { send(fd, $0.baseAddress, $0.count, Int32(MSG_NOSIGNAL)) }
      close(fd)
    }
    _ = try await Self.io(uri, "write -P 9 0 1M", "read -P 9 0 1M")
  }

  @Test func negotiatesByTheBook() {
    let export = NBDExport(
      name: "a", size: 1 << 20, blockSize: 512, isReadOnly: false, canTrim: true, canWriteZeroes: true)
    var handshake = NBDHandshake(tls: .none)
    func take(_ bytes: [UInt8]) -> (consumed: Int, answer: [UInt8], next: NBDHandshake.Next) {
      handshake.take(bytes, find: { $0 == "a" ? export : nil }, names: { ["a"] })
    }
    #expect(take([0, 0, 0]).consumed == 0)
    #expect(take([0, 0, 0, 3]).consumed == 4)
    let magic = Array("IHAVEOPT".utf8)
    // An option that is not known is refused, and the negotiation goes on.
    let unknown = take(magic + [0, 0, 0, 99, 0, 0, 0, 1, 7])
    #expect(unknown.consumed == 17 && unknown.next == .more && Array(unknown.answer[12..<16]) == [0x80, 0, 0, 1])
    // TLS is refused by policy, an unknown export as unknown.
    #expect(Array(take(magic + [0, 0, 0, 5, 0, 0, 0, 0]).answer[12..<16]) == [0x80, 0, 0, 2])
    let go: [UInt8] = magic + [0, 0, 0, 7, 0, 0, 0, 7, 0, 0, 0, 1]
    #expect(Array(take(go + Array("b".utf8) + [0, 0]).answer[12..<16]) == [0x80, 0, 0, 6])
    let served = take(go + Array("a".utf8) + [0, 0])
    #expect(served.next == .serve(export: "a", hasStructuredReplies: false, hasAllocationContext: false))
    // Too long, and cut short.
    #expect(take(magic + [0, 0, 0, 7, 0, 1, 0, 0]).next == .close)
    #expect(take(magic + [0, 0, 0, 7, 0, 0, 0, 7, 0]).consumed == 0)
  }

  @Test func requiresTLSWhereItIsAsked() {
    var handshake = NBDHandshake(tls: .required)
    func take(_ bytes: [UInt8]) -> (consumed: Int, answer: [UInt8], next: NBDHandshake.Next) {
      handshake.take(bytes, find: { _ in nil }, names: { ["secret"] })
    }
    _ = take([0, 0, 0, 3])
    let magic = Array("IHAVEOPT".utf8)
    #expect(Array(take(magic + [0, 0, 0, 3, 0, 0, 0, 0]).answer[12..<16]) == [0x80, 0, 0, 5])
    #expect(take(magic + [0, 0, 0, 5, 0, 0, 0, 0]).next == .startTLS)
  }
}

/// Expects a call to be refused with this code of SPDK's.
func expectCode(
  _ code: Int, _ location: SourceLocation = #_sourceLocation, _ body: () async throws -> JSONValue
) async {
  do {
    let value = try await body()
    Issue.record("answered \(value.text.prefix(200)) instead of \(code)", sourceLocation: location)
  } catch let error as JSONRPCError {
    #expect(error.serverCode == code, "\(error)", sourceLocation: location)
  } catch {
    Issue.record(error, sourceLocation: location)
  }
}
