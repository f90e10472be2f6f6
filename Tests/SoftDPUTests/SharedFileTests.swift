import Glibc
import JSON
import JSONRPC
import SoftDPU
import TestSupport
import Testing
import VhostFrontend

/// One file behind the disks of two servers, each with a data plane of its own.
@Suite struct SharedFileTests {
  private func create(_ target: Target, _ file: String, _ members: JSONValue) async throws {
    var call: JSONValue = ["name": "disk", "filename": .string(file), "block_size": 512]
    for (name, value) in members.objectValue ?? [:] { call[name] = value }
    _ = try await target.client.call("bdev_aio_create", call)
  }

  private func refusal(_ target: Target, _ file: String, _ members: JSONValue) async -> Int? {
    do {
      try await create(target, file, members)
      return nil
    } catch let error as JSONRPCError {
      return error.serverCode
    } catch {
      return 0
    }
  }

  @Test(arguments: Target.Place.allCases)
  func whatOneServerHasWrittenTheOtherReads(_ place: Target.Place) async throws {
    let first = try Target(place)
    let second = try Target(place)
    var frontends: [VhostFrontend] = []
    for target in [first, second] {
      try await create(target, first.file, ["shared": true, "fallocate": true])
      try await target.createController()
      frontends.append(try VhostFrontend(path: target.socket))
      try frontends.last?.start()
    }
    // Back and forth, over the same block, so that nothing that either has kept could be the answer.
    for round in UInt8(1)...40 {
      let (writer, reader) = (frontends[Int(round) % 2], frontends[Int(round + 1) % 2])
      let data = [UInt8](repeating: round, count: 4096)
      #expect(try writer.perform(VhostFrontend.writeType, write: data).status == 0)
      #expect(try reader.perform(VhostFrontend.readType, read: 4096).data == data)
    }
    #expect(try frontends[0].perform(VhostFrontend.flushType).status == 0)
  }

  @Test func aFileIsSharedOnlyWhereAllSaySo() async throws {
    let first = try Target()
    let second = try Target()
    let busy = -Int(EBUSY)
    try await create(first, first.file, ["shared": true])
    #expect(await refusal(second, first.file, [:]) == busy)
    #expect(await refusal(second, first.file, ["shared": true]) == nil)
    let shown = try await second.client.call("bdev_get_bdevs")[0]?["driver_specific"]?["aio"]?["shared"]
    #expect(shown?.boolValue == true)
    for target in [first, second] { _ = try await target.client.call("bdev_aio_delete", ["name": "disk"]) }
    // The other way round: who has it alone keeps it alone.
    try await create(first, first.file, [:])
    #expect(await refusal(second, first.file, ["shared": true]) == busy)
    #expect(await refusal(second, first.file, ["readonly": true]) == busy)
  }

  @Test func aDataPlaneThatIsStartedAgainSharesWhatItShared() async throws {
    let target = try Target()
    try await create(target, target.file, ["shared": true])
    target.dataPlane.stop()
    let again = try Target.start(target.directory)
    defer { again.stop() }
    let other = try Target()
    #expect(await refusal(other, target.file, ["shared": true]) == nil)
    #expect(await refusal(other, target.file, ["name": "x"]) == -Int(EBUSY))
    let client = JSONRPCClient(path: target.directory.file("rpc.sock"))
    #expect(try await client.call("bdev_get_bdevs")[0]?["driver_specific"]?["aio"]?["shared"]?.boolValue == true)
  }

  @Test func aSharedFileIsInNoSnapshotOfAGroup() async throws {
    let target = try Target()
    try await create(target, target.file, ["shared": true])
    do {
      _ = try await target.client.call(
        "bdev_snapshot_files",
        ["folder": .string(target.directory.file("g")), "files": [["name": "disk", "file": "a.img"]]])
      Issue.record("it was captured")
    } catch let error as JSONRPCError {
      #expect(error.serverCode == -Int(EBUSY), "it is shared")
    }
    #expect(access(target.directory.file("g"), F_OK) != 0)
  }
}
