import Glibc
import JSON
import JSONRPC
import TestSupport
import Testing
import VhostFrontend

/// Memory for requests: nobody takes it from the node or from the others, and who finds none waits.
@Suite(.serialized) struct MemoryTests {
  /// A request as an indirect table: a header, pieces, a status.
  private struct Chain {
    let frontend: VhostFrontend
    let number: Int
    private var base: Int { frontend.queues[0].dataOffset }
    private var status: Int { base + 0xC000 + number }

    /// Offers a request with pieces of the guest's memory (offsets from the queue's data).
    func offer(_ type: UInt32, sector: UInt64, pieces: [(offset: Int, length: Int)]) {
      let queue = frontend.queues[0]
      let header = base + 0x8000 + number * 16
      frontend.ram.base.storeBytes(of: UInt64(type), toByteOffset: header, as: UInt64.self)
      frontend.ram.base.storeBytes(of: sector, toByteOffset: header + 8, as: UInt64.self)
      frontend.ram.base.storeBytes(of: 0xFF, toByteOffset: status, as: UInt8.self)
      let flags: UInt16 = type == VhostFrontend.readType ? 3 : 1
      let table =
        [(header, 16, UInt16(1))] + pieces.map { (base + $0.offset, $0.length, flags) } + [(status, 1, UInt16(2))]
      for (index, entry) in table.enumerated() {
        let place = frontend.ram.base + (base + number * 4096 + index * 16)
        place.storeBytes(of: frontend.ram.guestAddress(entry.0), as: UInt64.self)
        place.storeBytes(of: UInt32(entry.1), toByteOffset: 8, as: UInt32.self)
        place.storeBytes(of: entry.2, toByteOffset: 12, as: UInt16.self)
        place.storeBytes(of: UInt16(index + 1), toByteOffset: 14, as: UInt16.self)
      }
      queue.writeDescriptor(
        number, address: frontend.ram.guestAddress(base + number * 4096), length: UInt32(table.count * 16), flags: 4,
        next: 0)
      queue.makeAvailable(UInt16(number))
    }

    /// Rings, and waits for so many answers; the statuses of the first requests.
    static func wait(_ frontend: VhostFrontend, _ count: Int) throws -> [UInt8] {
      let queue = frontend.queues[0]
      queue.ringBell()
      var answered = 0
      while answered < count {
        queue.reap { _, _ in answered += 1 }
        if answered < count, !queue.wait(milliseconds: 60_000) { throw TestEnvironmentError("no answer") }
      }
      return (0..<count).map { frontend.ram.base.load(fromByteOffset: queue.dataOffset + 0xC000 + $0, as: UInt8.self) }
    }
  }

  private func highWater(_ process: ChildProcess) -> Int {
    let status = contentsOfFile("/proc/\(process.pid)/status") ?? ""
    let line = status.split(separator: "\n").first { $0.hasPrefix("VmHWM:") } ?? ""
    return Int(line.filter(\.isNumber)) ?? .max
  }

  /// Long requests from memory that direct I/O does not take go through buffers of the data plane.
  @Test(.timeLimit(.minutes(2))) func aGuestsUnalignedRequestsTakeNoMoreThanTheirShare() async throws {
    let fileSystem = try await ReflinkFileSystem()
    let file = "\(fileSystem.path)/disk"
    let fd = open(file, O_RDWR | O_CREAT | O_CLOEXEC, 0o600)
    defer { close(fd) }
    try #require(fd >= 0 && ftruncate(fd, 160 << 20) == 0)
    let softDPU = try await SoftDPUProcess(try TemporaryDirectory())
    defer { softDPU.process.kill() }
    _ = try await softDPU.client.call(
      "bdev_aio_create", ["name": "disk", "filename": .string(file), "block_size": 512, "fallocate": true])
    _ = try await softDPU.client.call("vhost_create_blk_controller", ["ctrlr": "d", "dev_name": "disk"])
    let frontend = try VhostFrontend(path: "\(softDPU.directory.file("bus"))/d", slotLength: 1 << 20)
    try frontend.start()
    var random = SeededGenerator(seed: 11)
    let content = random.bytes(1 << 20)
    let data = frontend.queues[0].dataOffset + 0x10001
    (frontend.ram.base + data).copyMemory(from: content, byteCount: content.count)
    let before = highWater(softDPU.process)
    let pieces = [(offset: Int, length: Int)](repeating: (0x10001, 1 << 20), count: 126)
    for number in 0..<4 {
      Chain(frontend: frontend, number: number).offer(VhostFrontend.writeType, sector: 0, pieces: pieces)
    }
    #expect(try Chain.wait(frontend, 4) == [0, 0, 0, 0])
    let grown = (highWater(softDPU.process) - before) >> 10
    // 504 MiB were under way; a device has 64 MiB of buffers.
    #expect(grown < 200, "\(grown) MiB")
    var found = [UInt8](repeating: 0, count: 1 << 20)
    for megabyte in 0..<126 {
      #expect(pread(fd, &found, found.count, off_t(megabyte) << 20) == found.count)
      #expect(found == content, "MiB \(megabyte)")
    }
    // And back, into pieces that lie oddly.
    let parts: [(offset: Int, length: Int)] = [
      (0x200001, 1_500_001), (0x500003, 2_000_000), (0x800005, (4 << 20) - 3_500_001),
    ]
    Chain(frontend: frontend, number: 0).offer(VhostFrontend.readType, sector: 0, pieces: parts)
    #expect(try Chain.wait(frontend, 1) == [0])
    var read: [UInt8] = []
    for part in parts {
      let place = frontend.ram.base + frontend.queues[0].dataOffset + part.offset
      read += UnsafeRawBufferPointer(start: place, count: part.length)
    }
    #expect(read == content + content + content + content)
  }

  /// A host that asks to write more than there is memory for, and sends nothing, holds up itself alone.
  @Test(.timeLimit(.minutes(2))) func aHostThatSendsNoDataHoldsUpNobodyElse() async throws {
    let target = try Target(.memory)
    let client = target.client
    _ = try await client.call("bdev_malloc_create", ["name": "m", "block_size": 512, "num_blocks": 262_144])
    _ = try await client.call(
      "accel_crypto_key_create",
      [
        "name": "k", "cipher": "AES_XTS", "key": "27182818284590452353602874713526",
        "key2": "31415926535897932384626433832795",
      ])
    _ = try await client.call("bdev_malloc_create", ["name": "n", "block_size": 512, "num_blocks": 131_072])
    _ = try await client.call("bdev_crypto_create", ["base_bdev_name": "n", "name": "secret", "key_name": "k"])
    let host = try await NVMeHost(target, device: "m", maximumTransfer: 1 << 20)
    for queue in 2...18 {
      try host.addQueue(UInt8(queue))
      try host.beginWrites(queue: queue, count: 128, blocks: 2048)
    }
    // What brings no data needs no memory, also of a controller that has its whole share.
    #expect(try host.feature(0x0F) >= 0)
    for name in ["m", "secret"] { _ = try await NBDTests.export(target, name) }
    for name in ["m", "secret"] {
      let nbd = try NBDClient(target.directory.file("\(name).sock"))
      let content = [UInt8](repeating: 3, count: 20 << 20)
      #expect(try nbd.perform(.write, at: 4096, content).error == 0)
      let read = try nbd.perform(.read, at: 4096, length: content.count)
      #expect(read.error == 0 && read.data == content)
    }
    // Those that wait for memory go on when there is some.
    host.closeQueues(from: 2)
    #expect(try host.writeAll(count: 120, blocks: 2048) == [Int](repeating: 0, count: 120))
  }

  /// A compare needs room for both sides, and says what is wrong when what is there cannot be read.
  @Test func comparesWithWhatIsThere() async throws {
    let target = try Target(.memory)
    _ = try await target.client.call("bdev_malloc_create", ["name": "m", "block_size": 512, "num_blocks": 8192])
    _ = try await target.client.call("bdev_error_create", ["base_name": "m"])
    let host = try await NVMeHost(target, device: "EE_m")
    for blocks in [8, 64] {
      #expect(try host.write(block: 0, blocks: blocks) == 0)
      #expect(try host.compare(block: 0, blocks: blocks) == 0)
      #expect(try host.compare(block: 1024, blocks: blocks) == 0x4285)
      _ = try await target.client.call(
        "bdev_error_inject_error", ["name": "EE_m", "io_type": "read", "error_type": "failure", "num": 1])
      #expect(try host.compare(block: 0, blocks: blocks) == 0x281)
    }
  }

  @Test func aDiscoveryControllerWithoutAKeepAliveGetsOne() async throws {
    let target = try Target(.memory)
    _ = try await target.client.call("bdev_malloc_create", ["name": "m", "block_size": 512, "num_blocks": 8192])
    let host = try await NVMeHost(target, device: "m", discovery: true)
    // The Keep Alive Timer feature, in milliseconds.
    #expect(try host.feature(0x0F) == 120_000)
  }
}
