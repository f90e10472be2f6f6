import Glibc
import JSON
import JSONRPC
import TestSupport
import Testing
import VhostFrontend

/// A disk that is full, and one that fails: each way out tells it in its own protocol's words, and goes on.
@Suite(.serialized) struct ErrorsFromBelowTests {
  /// Errors of NBD's specification (proto.md, "Error values").
  private static let inputOutput: UInt32 = 5
  private static let noSpace: UInt32 = 28

  /// A small file system in memory that a sparse file does not fit into. Through direct I/O and io_uring, or at once.
  private final class SmallDisk {
    let directory: TemporaryDirectory
    let file: String
    private let mount: String
    private let reflink: ReflinkFileSystem?

    init(_ place: Target.Place) async throws {
      directory = try TemporaryDirectory()
      if place == .memory {
        try TestEnvironment.requireRoot(for: "mounting a file system")
        mount = directory.file("small")
        try await ChildProcess.run(
          "sh", ["-c", "mkdir \(mount) && mount -t tmpfs -o size=1m none \(mount)"])
        reflink = nil
        file = "\(mount)/disk"
      } else {
        let fileSystem = try await ReflinkFileSystem(sizeMiB: 300)
        reflink = fileSystem
        mount = ""
        file = "\(fileSystem.path)/disk"
        // All but about three mebibytes is taken.
        let free = "$(($(stat -f -c '%a*%S' \(fileSystem.path)) - (3 << 20)))"
        try await ChildProcess.run("sh", ["-c", "fallocate -l \(free) \(fileSystem.path)/rest"])
      }
      Glibc.close(open(file, O_RDWR | O_CREAT, 0o600))
      truncate(file, 64 << 20)
    }

    deinit { if !mount.isEmpty { umount2(mount, Int32(MNT_DETACH)) } }
  }

  private func target(on disk: SmallDisk) async throws -> Target {
    let target = try Target(.memory)
    _ = try await target.client.call(
      "bdev_aio_create",
      ["name": "full", "filename": .string(disk.file), "block_size": 512, "fallocate": true])
    return target
  }

  @Test(arguments: Target.Place.allCases) func aFullDiskSaysSoOverNBD(_ place: Target.Place) async throws {
    let disk = try await SmallDisk(place)
    let target = try await target(on: disk)
    _ = try await NBDTests.export(target, "full")
    let client = try NBDClient(target.directory.file("full.sock"))
    let content = [UInt8](repeating: 7, count: 8 << 20)
    #expect(try client.perform(.write, at: 0, [UInt8](content.prefix(4096))).error == 0)
    #expect(try client.perform(.write, at: 1 << 20, content).error == Self.noSpace)
    // The connection goes on, and what is there can be read and written.
    #expect(try client.perform(.read, at: 0, length: 4096).data == [UInt8](content.prefix(4096)))
    // Space that is given back is there for the next.
    #expect(try client.perform(.trim, at: 0, length: 64 << 20).error == 0)
    #expect(try client.perform(.write, at: 0, [UInt8](content.prefix(4096))).error == 0)
  }

  @Test(arguments: Target.Place.allCases) func aFullDiskFailsTheGuestsRequest(_ place: Target.Place) async throws {
    let disk = try await SmallDisk(place)
    let target = try await target(on: disk)
    _ = try await target.client.call("vhost_create_blk_controller", ["ctrlr": "full", "dev_name": "full"])
    let frontend = try VhostFrontend(path: "\(target.directory.file("bus"))/full", slotLength: 1 << 20)
    try frontend.start()
    let content = [UInt8](repeating: 7, count: 1 << 20)
    #expect(try frontend.perform(VhostFrontend.writeType, write: [UInt8](content.prefix(4096))).status == statusOK)
    var statuses: [UInt8] = []
    for megabyte in 1..<8 {
      statuses.append(
        try frontend.perform(VhostFrontend.writeType, sector: UInt64(megabyte) * 2048, write: content).status)
    }
    // virtio-blk has one word for all that goes wrong below (virtio 1.2, section 5.2.6.2).
    #expect(statuses.last == statusError)
    #expect(statuses.allSatisfy { $0 == statusOK || $0 == statusError })
    #expect(try frontend.perform(VhostFrontend.readType, read: 4096).data == [UInt8](content.prefix(4096)))
  }

  @Test(arguments: Target.Place.allCases) func aFullDiskIsCapacityExceededOverNVMe(_ place: Target.Place) async throws {
    let disk = try await SmallDisk(place)
    let target = try await target(on: disk)
    let host = try await NVMeHost(target, device: "full")
    #expect(try host.write(block: 0, blocks: 8) == 0)
    var statuses: Set<Int> = []
    for step in 0..<64 { statuses.insert(try host.write(block: 2048 + UInt64(step) * 256, blocks: 256)) }
    // Generic Command Status "Capacity Exceeded" (NVMe Base 2.0, figure 97: 81h), and not to be tried again.
    #expect(statuses == [0, 0x4081])
    #expect(try host.read(block: 0, blocks: 8) == 0)
  }

  private func brokenTarget() async throws -> Target {
    let target = try Target(.memory)
    _ = try await target.client.call("bdev_malloc_create", ["name": "m", "block_size": 512, "num_blocks": 8192])
    _ = try await target.client.call("bdev_error_create", ["base_name": "m"])
    return target
  }

  private func inject(_ target: Target, _ type: String, _ error: String = "failure") async throws {
    _ = try await target.client.call(
      "bdev_error_inject_error",
      ["name": "EE_m", "io_type": .string(type), "error_type": .string(error), "num": 1])
  }

  @Test func aFailureIsAnErrorOfItsKindOverNBD() async throws {
    let target = try await brokenTarget()
    _ = try await NBDTests.export(target, "EE_m")
    let client = try NBDClient(target.directory.file("EE_m.sock"))
    let content = [UInt8](repeating: 1, count: 4096)
    let requests: [(String, NBDClient.Command)] = [
      ("read", .read), ("write", .write), ("flush", .flush), ("unmap", .trim), ("write_zeroes", .writeZeroes),
    ]
    for (type, command) in requests {
      try await inject(target, type)
      let length = command == .flush ? 0 : 4096
      #expect(try client.perform(command, length: length, content).error == Self.inputOutput, "\(type)")
      #expect(try client.perform(command, length: length, content).error == 0, "\(type) again")
    }
    try await inject(target, "write", "nomem")
    #expect(try client.perform(.write, content).error == 12)
  }

  @Test func aFailureIsAnErrorToTheGuest() async throws {
    let target = try await brokenTarget()
    _ = try await target.client.call("vhost_create_blk_controller", ["ctrlr": "broken", "dev_name": "EE_m"])
    let frontend = try VhostFrontend(path: "\(target.directory.file("bus"))/broken")
    try frontend.start()
    var range = [UInt8](repeating: 0, count: 16)
    range[8] = 8
    let content = [UInt8](repeating: 1, count: 4096)
    let requests: [(String, UInt32, [UInt8]?)] = [
      ("read", VhostFrontend.readType, nil), ("write", VhostFrontend.writeType, content),
      ("flush", VhostFrontend.flushType, nil), ("unmap", VhostFrontend.discardType, range),
      ("write_zeroes", VhostFrontend.writeZeroesType, range),
    ]
    for (type, number, content) in requests {
      try await inject(target, type)
      let length = type == "read" ? 4096 : 0
      #expect(try frontend.perform(number, write: content, read: length).status == statusError, "\(type)")
      #expect(try frontend.perform(number, write: content, read: length).status == statusOK, "\(type) again")
    }
  }

  @Test func aFailureIsAMediaErrorOverNVMe() async throws {
    let target = try await brokenTarget()
    let host = try await NVMeHost(target, device: "EE_m")
    // Media and Data Integrity Errors: Unrecovered Read Error (281h), Write Fault (280h).
    try await inject(target, "read")
    #expect(try host.read(block: 0, blocks: 8) == 0x281)
    try await inject(target, "write")
    #expect(try host.write(block: 0, blocks: 8) == 0x280)
    try await inject(target, "write_zeroes")
    #expect(try host.writeZeroes(block: 0, blocks: 8) == 0x280)
    try await inject(target, "unmap")
    #expect(try host.deallocate(block: 0, blocks: 8) == 0x280)
    try await inject(target, "flush")
    #expect(try host.flush() == 0x280)
    // Nothing is wrong with the medium where only memory was short: Internal Error, to be tried again.
    try await inject(target, "read", "nomem")
    #expect(try host.read(block: 0, blocks: 8) == 0x06)
    #expect(try host.read(block: 0, blocks: 8) == 0)
    #expect(try host.write(block: 0, blocks: 8) == 0)
  }

  /// What fails behind two softdpus, one of which is the other's host, is told as what it is.
  @Test func aFullDiskSaysSoThroughAnInitiator() async throws {
    let disk = try await SmallDisk(.memory)
    let far = try await target(on: disk)
    let port = try await NVMeHost.show("full", far)
    let near = try Target(.memory)
    _ = try await near.client.call(
      "bdev_nvme_attach_controller",
      [
        "name": "r", "trtype": "TCP", "adrfam": "IPv4", "traddr": "127.0.0.1", "trsvcid": .string("\(port)"),
        "subnqn": .string(NVMeHost.nqn),
      ])
    _ = try await NBDTests.export(near, "rn1")
    let client = try NBDClient(near.directory.file("rn1.sock"))
    #expect(try client.perform(.write, at: 0, [UInt8](repeating: 7, count: 4096)).error == 0)
    let large = [UInt8](repeating: 7, count: 8 << 20)
    #expect(try client.perform(.write, at: 1 << 20, large).error == Self.noSpace)
    #expect(try client.perform(.read, at: 0, length: 4096).data == [UInt8](repeating: 7, count: 4096))
  }
}
