import Glibc
import JSON
import JSONRPC
import SoftDPU
import TestSupport
import Testing
import VhostFrontend

/// What happens to a front end while volumes grow, targets restart and connections break.
@Suite struct LifeTests {
  @Test func tellsTheGuestThatTheDiskGrew() async throws {
    let target = try Target()
    let frontend = try await target.frontend()
    #expect(try frontend.sectors() == 16384)
    truncate(target.file, 32 << 20)
    #expect(try frontend.sectors() == 16384)
    #expect(try await target.client.call("bdev_aio_rescan", ["name": "disk"]) == true)
    // VHOST_USER_BACKEND_CONFIG_CHANGE_MSG
    #expect(frontend.backendMessage(milliseconds: 5000) == 2)
    #expect(try frontend.sectors() == 65536)
    #expect(try frontend.perform(VhostFrontend.readType, sector: 65535, read: 512).status == statusOK)
    let volume = try await target.client.call("bdev_get_bdevs", ["name": "disk"])
    #expect(volume[0]?["num_blocks"] == 65536)
    // Shrinking under a guest is refused, and changes nothing.
    truncate(target.file, 8 << 20)
    let error = await #expect(throws: JSONRPCError.self) {
      try await target.client.call("bdev_aio_rescan", ["name": "disk"])
    }
    #expect(error?.code == .server(-16))
    #expect(try frontend.perform(VhostFrontend.readType, sector: 65535, read: 512).status == statusError)
  }

  @Test func takesTheNextFrontEndAfterOneDied() async throws {
    let target = try Target()
    let frontend = try await target.frontend(slotLength: 4096)
    for _ in 0..<20 {
      let queue = frontend.queues[0]
      for slot in 0..<queue.slots {
        queue.submit(slot: slot, type: VhostFrontend.writeType, sector: UInt64(slot * 8), length: 4096, writable: false)
      }
      queue.kick()
      // In the middle of it.
      frontend.disconnect()
      try frontend.start(resume: true)
      try reapAll(queue)
    }
  }

  private func reapAll(_ queue: FrontendQueue) throws {
    while queue.lastUsed != queue.availableIndex {
      queue.reap { head, _ in #expect(queue.status(Int(head) / 3) == statusOK) }
      if queue.lastUsed != queue.availableIndex { try #require(queue.wait(milliseconds: 10_000)) }
    }
  }

  /// A target that dies with requests taken and not answered, as the in-flight record shows it to the next one.
  @Test func resubmitsWhatADeadTargetHadTaken() async throws {
    let target = try Target()
    let frontend = try await target.frontend(slotLength: 4096)
    let queue = frontend.queues[0]
    _ = try frontend.stop(queue)
    // What a target leaves that took slots 0 to 4 and answered 1 and 3.
    for slot in 0..<5 {
      queue.data(slot).copyBytes(from: repeatElement(UInt8(slot + 1), count: 4096))
      queue.submit(slot: slot, type: VhostFrontend.writeType, sector: UInt64(slot * 8), length: 4096, writable: false)
    }
    try frontend.editInflight { record in
      // Header of 16 bytes, then 16 for each descriptor: in flight at 0, order at 8.
      for (order, slot) in [4, 0, 2].enumerated() {
        let entry = record + (16 + slot * 3 * 16)
        entry.storeBytes(of: 1, as: UInt8.self)
        entry.storeBytes(of: UInt64(100 + order), toByteOffset: 8, as: UInt64.self)
      }
      record.storeBytes(of: 2, toByteOffset: 14, as: UInt16.self)
    }
    queue.pretendUsed([3, 9])
    frontend.disconnect()
    var order: [UInt32] = []
    try frontend.start(resume: true)
    while order.count < 3 {
      queue.reap { head, _ in order.append(head) }
      if order.count < 3 { try #require(queue.wait(milliseconds: 10_000)) }
    }
    #expect(Set(order) == [0, 6, 12])
    for slot in [0, 2, 4] {
      #expect(target.bytes(at: slot * 4096, count: 4096) == [UInt8](repeating: UInt8(slot + 1), count: 4096))
    }
    // Those that were answered are not done again.
    for slot in [1, 3] { #expect(target.bytes(at: slot * 4096, count: 4096) == [UInt8](repeating: 0, count: 4096)) }
    #expect(try frontend.stop(queue) == 5)
  }

  @Test func comesBackWithItsConfiguration() async throws {
    let directory = try TemporaryDirectory()
    let file = directory.file("disk")
    close(open(file, O_RDWR | O_CREAT, 0o600))
    truncate(file, 4 << 20)
    var dataPlane = try Target.start(directory)
    let client = JSONRPCClient(path: directory.file("rpc.sock"))
    _ = try await client.call(
      "bdev_aio_create", ["name": "disk", "filename": .string(file), "block_size": 512, "fallocate": true])
    _ = try await client.call("vhost_create_blk_controller", ["ctrlr": "blk-00-disk", "dev_name": "disk"])
    let volumes = try await client.call("bdev_get_bdevs")
    let controllers = try await client.call("vhost_get_controllers")
    let frontend = try VhostFrontend(path: "\(directory.file("bus"))/blk-00-disk")
    try frontend.start()
    #expect(try frontend.perform(VhostFrontend.writeType, write: [UInt8](repeating: 9, count: 4096)).status == statusOK)

    dataPlane.stop()
    #expect(access(frontend.path, F_OK) == 0)
    // A controller whose delete was cut short left its socket: it is nobody's now.
    let orphan = JSONRPCServer(path: "\(directory.file("bus"))/orphan") { _, _ in }
    try orphan.start()
    rename("\(directory.file("bus"))/orphan", "\(directory.file("bus"))/blk-01-gone")
    orphan.stop()
    let abandoned = "\(directory.file("bus"))/blk-01-gone"
    try await eventually { (try? JSONStream.connect(path: abandoned)) == nil }

    dataPlane = try Target.start(directory)
    #expect(try await client.call("bdev_get_bdevs") == volumes)
    #expect(try await client.call("vhost_get_controllers") == controllers)
    #expect(access("\(directory.file("bus"))/blk-01-gone", F_OK) != 0)
    frontend.disconnect()
    try frontend.start(resume: true)
    #expect(try frontend.perform(VhostFrontend.readType, read: 4096).data == [UInt8](repeating: 9, count: 4096))
    dataPlane.stop()
  }

  @Test func doesNotStartOverAnUnreadableConfiguration() async throws {
    let directory = try TemporaryDirectory()
    mkdir(directory.file("state"), 0o700)
    _ = try directory.write("state/softdpu.json", "{\"version\": 1")
    #expect(throws: SoftDPUError.self) { try Target.start(directory) }
    #expect(contentsOfFile(directory.file("state/softdpu.json")) == "{\"version\": 1")
  }

  @Test func takesAControllerAwayInTwoSteps() async throws {
    let target = try Target()
    let frontend = try await target.frontend()
    async let deleting = target.client.call("vhost_delete_controller", ["ctrlr": .string(Target.socketName)])
    // First the socket goes, while the guest still has its disk; then the guest lets go, and the controller goes.
    try await eventually(within: .seconds(60)) { access(target.socket, F_OK) != 0 }
    #expect(try frontend.perform(VhostFrontend.readType, read: 512).status == statusOK)
    frontend.disconnect()
    #expect(try await deleting == true)
    #expect(try await target.client.call("vhost_get_controllers") == [])
    #expect(try await target.client.call("bdev_aio_delete", ["name": "disk"]) == true)
  }

  @Test func cutsAFrontEndOffThatHoldsOn() async throws {
    let target = try Target()
    let frontend = try await target.frontend()
    let name: JSONValue = .string(Target.socketName)
    func delete(_ parameters: JSONValue) async -> JSONRPCError? {
      await #expect(throws: JSONRPCError.self) {
        _ = try await target.client.call("vhost_delete_controller", parameters)
      }
    }
    #expect(await delete(["ctrlr": name])?.message == "Device or resource busy")
    // Asked again it does not wait as long, and the guest still has its disk.
    let begin = ContinuousClock.now
    #expect(await delete(["ctrlr": name])?.message == "Device or resource busy")
    #expect(begin.duration(to: .now) < .seconds(4))
    #expect(try frontend.perform(VhostFrontend.readType, read: 512).status == statusOK)
    #expect(try await target.client.call("vhost_get_controllers").arrayValue?.count == 1)
    #expect(try await target.client.call("vhost_delete_controller", ["ctrlr": name, "force": true]) == true)
    #expect(try await target.client.call("vhost_get_controllers") == [])
    #expect(throws: (any Error).self) { try frontend.perform(VhostFrontend.readType, read: 512) }
    #expect(try await target.client.call("bdev_aio_delete", ["name": "disk"]) == true)
  }
}
