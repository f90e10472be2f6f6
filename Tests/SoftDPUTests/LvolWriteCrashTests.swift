import Dispatch
import Glibc
import JSON
import JSONRPC
import Synchronization
import TestSupport
import Testing

/// SIGKILL, and every other time a power cut, while several clients write and flush at random, and snapshots and clones
/// are made of what they write: what was flushed is there, every block is one that was written there, and neither a
/// snapshot nor a clone that nobody writes ever changes.
///
/// `YCLOUD_CRASH_ROUNDS` and `YCLOUD_CRASH_SEED` as for `LvolCrashTests`.
@Suite(.serialized) struct LvolWriteCrashTests {
  private static let fewRounds: UInt64 = 12
  private static let volumes = 3
  private static let blocks = 256
  private static let blockLength = 4096

  /// What the blocks of one volume may hold.
  private struct Content: Sendable {
    /// What was there at the last flush; several where a round was cut short.
    var durable = [Set<UInt64>](repeating: [0], count: LvolWriteCrashTests.blocks)
    /// What was written since, acknowledged or not.
    var later = [Set<UInt64>](repeating: [], count: LvolWriteCrashTests.blocks)
    /// The last of them.
    var last = [UInt64?](repeating: nil, count: LvolWriteCrashTests.blocks)
    var flushes = 0

    mutating func begin(_ block: Int, _ stamp: UInt64) {
      later[block].insert(stamp)
      last[block] = stamp
    }

    /// What was written last is durable.
    mutating func settle(_ block: Int) {
      guard let stamp = last[block] else { return }
      durable[block] = [stamp]
      later[block] = []
      last[block] = nil
    }

    func allows(_ stamp: UInt64, _ block: Int) -> Bool {
      durable[block].contains(stamp) || later[block].contains(stamp)
    }
  }

  @Test(.timeLimit(CrashRounds.timeLimit(LvolWriteCrashTests.fewRounds)))
  func whatWasFlushedIsThereAndClonesStayAsTheyAre() async throws {
    let rounds = CrashRounds.count(otherwise: Self.fewRounds)
    let first = CrashRounds.firstSeed()
    let fileSystem = try await ReflinkFileSystem()
    let directory = try TemporaryDirectory()
    var contents = [Content](repeating: Content(), count: Self.volumes)
    // What nobody writes: as it was read first.
    var frozen: [String: [UInt64]] = [:]
    var flushes = 0
    var copies: Set<String> = []
    for round in 0..<rounds {
      let seed = first &+ round
      var random = SeededGenerator(seed: seed)
      let softDPU = try await SoftDPUProcess(directory, note: "seed \(seed)")
      let client = softDPU.client
      if round == 0 { try await prepare(client, fileSystem, directory) }
      try await compare(&contents, &frozen, client, directory, "seed \(seed)")
      copies.formUnion(frozen.keys)
      let writers = (0..<Self.volumes).map { number in
        Writer(directory.file("v\(number).sock"), contents[number], seed: seed &* 16 &+ UInt64(number))
      }
      let death = Death(
        softDPU.process, powerOf: round % 2 == 1 ? fileSystem : nil, after: Int.random(in: 20...400, using: &random))
      var operations = SeededGenerator(seed: seed &+ 1_000_003)
      do {
        while true { try await copy(client, frozen.keys.sorted(), &operations) }
      } catch {
        // Only because the process, or its disk, is gone.
        if !death.hasBegun, softDPU.process.isRunning, (try? await client.call("spdk_get_version")) != nil {
          throw error
        }
      }
      try await death.wait()
      for number in 0..<Self.volumes {
        contents[number] = writers[number].finish()
        flushes += contents[number].flushes
      }
    }
    #expect(flushes > 0)
    // A round that copies nothing tests nothing.
    for kind in ["s", "c"] { #expect(copies.contains { $0.hasPrefix(kind) }, "no copies of kind \(kind)") }
    print("crashes while writing: \(rounds) rounds, \(flushes) flushes, \(frozen.count) snapshots and clones at last")
  }

  private func prepare(
    _ client: JSONRPCClient, _ fileSystem: ReflinkFileSystem, _ directory: TemporaryDirectory
  ) async throws {
    _ = try await client.call(
      "bdev_aio_create", ["name": "pool", "filename": .string(fileSystem.path), "block_size": 512])
    _ = try await client.call(
      "bdev_lvol_create_lvstore", ["bdev_name": "pool", "lvs_name": "lvs", "cluster_sz": 65536])
    for number in 0..<Self.volumes {
      _ = try await client.call(
        "bdev_lvol_create",
        ["lvol_name": .string("v\(number)"), "size_in_mib": 1, "lvs_name": "lvs", "thin_provision": true])
      _ = try await client.call(
        "nbd_start_disk",
        ["bdev_name": .string("lvs/v\(number)"), "nbd_device": .string(directory.file("v\(number).sock"))])
    }
  }

  /// Makes a snapshot of a volume that is being written, or a clone of a snapshot, or deletes one.
  private func copy(_ client: JSONRPCClient, _ names: [String], _ random: inout SeededGenerator) async throws {
    let stamp = String(random.next() % 1_000_000_000, radix: 36)
    do {
      switch Int.random(in: 0..<3, using: &random) {
      case 0:
        let origin = Int.random(in: 0..<Self.volumes, using: &random)
        _ = try await client.call(
          "bdev_lvol_snapshot",
          ["lvol_name": .string("lvs/v\(origin)"), "snapshot_name": .string("s\(origin)-\(stamp)")])
      case 1:
        guard let origin = names.filter({ $0.hasPrefix("s") }).randomElement(using: &random) else { return }
        _ = try await client.call(
          "bdev_lvol_clone", ["snapshot_name": .string("lvs/\(origin)"), "clone_name": .string("c\(origin)-\(stamp)")])
      default:
        let listed = try await client.call("bdev_lvol_get_lvols", ["lvs_name": "lvs"]).arrayValue ?? []
        guard listed.count > 12 else { return }
        let copies = listed.compactMap { $0["name"]?.stringValue }.filter { !$0.hasPrefix("v") }.sorted()
        // As many as the other two make, and more where there are many.
        for doomed in copies.shuffled(using: &random).prefix(max(2, copies.count / 4)) {
          _ = try await client.call("bdev_lvol_delete", ["name": .string("lvs/\(doomed)")])
        }
      }
    } catch let error as JSONRPCError where [-17, -19, -32602, -32603].contains(error.serverCode) {
      // Taken, gone, or rested on: another time.
    }
  }

  /// One client of one volume, one request after the other, until the server dies.
  private final class Writer: Sendable {
    private let content: Mutex<Content>
    private let ended = DispatchSemaphore(value: 0)

    init(_ socket: String, _ start: Content, seed: UInt64) {
      var start = start
      start.flushes = 0
      content = Mutex(start)
      DispatchQueue(label: "writer").async { [self] in
        try? work(socket, SeededGenerator(seed: seed))
        ended.signal()
      }
    }

    func finish() -> Content {
      ended.wait()
      return content.withLock { $0 }
    }

    private func work(_ socket: String, _ generator: SeededGenerator) throws {
      var random = generator
      let client = try NBDClient(socket)
      while true {
        if Int.random(in: 0..<6, using: &random) == 0 {
          guard try client.perform(.flush).error == 0 else { continue }
          content.withLock { content in
            for block in 0..<LvolWriteCrashTests.blocks { content.settle(block) }
            content.flushes += 1
          }
          continue
        }
        let first = Int.random(in: 0..<LvolWriteCrashTests.blocks, using: &random)
        let count = Int.random(in: 1...min(32, LvolWriteCrashTests.blocks - first), using: &random)
        let stamp = random.next()
        // One write in four counts as done when it is durable (FUA).
        let isDurable = Int.random(in: 0..<4, using: &random) == 0
        content.withLock { content in for block in first..<first + count { content.begin(block, stamp) } }
        let bytes = (0..<8).map { UInt8(truncatingIfNeeded: stamp >> ($0 * 8)) }
        let length = count * LvolWriteCrashTests.blockLength
        let data = (0..<length / 8).flatMap { _ in bytes }
        let offset = UInt64(first * LvolWriteCrashTests.blockLength)
        guard try client.perform(.write, at: offset, data, flags: isDurable ? 1 : 0).error == 0 else { continue }
        guard isDurable else { continue }
        content.withLock { content in for block in first..<first + count { content.settle(block) } }
      }
    }
  }

  /// Compares every volume with what it may hold, and what nobody writes with what it was.
  private func compare(
    _ contents: inout [Content], _ frozen: inout [String: [UInt64]], _ client: JSONRPCClient,
    _ directory: TemporaryDirectory, _ seed: String
  ) async throws {
    for number in 0..<Self.volumes {
      let sectors = try await read("v\(number)", at: directory.file("v\(number).sock"))
      // What was read is to stay, also over a power cut.
      #expect(try NBDClient(directory.file("v\(number).sock")).perform(.flush).error == 0)
      for block in 0..<Self.blocks {
        let found = Set(sectors[block * 8..<block * 8 + 8])
        let strangers = found.filter { !contents[number].allows($0, block) }
        #expect(
          strangers.isEmpty,
          "\(seed): v\(number) block \(block) has \(strangers), not \(contents[number].durable[block]) or \(contents[number].later[block])"
        )
        contents[number].durable[block] = found
        contents[number].later[block] = []
        contents[number].last[block] = nil
      }
    }
    let listed = try await client.call("bdev_lvol_get_lvols", ["lvs_name": "lvs"]).arrayValue ?? []
    let present = listed.compactMap { $0["name"]?.stringValue }.filter { !$0.hasPrefix("v") }
    for name in frozen.keys where !present.contains(name) { frozen[name] = nil }
    for name in present.sorted() {
      let socket = directory.file("check.sock")
      _ = try await client.call(
        "nbd_start_disk", ["bdev_name": .string("lvs/\(name)"), "nbd_device": .string(socket)])
      let sectors = try await read(name, at: socket)
      _ = try await client.call("nbd_stop_disk", ["nbd_device": .string(socket)])
      #expect(frozen[name] == nil || frozen[name] == sectors, "\(seed): \(name) has changed")
      // A clone began as its snapshot is: `c` and the snapshot's name.
      if name.hasPrefix("c"), let origin = frozen.keys.first(where: { name.hasPrefix("c\($0)-") }) {
        #expect(frozen[origin] == sectors, "\(seed): \(name) is not as \(origin)")
      }
      frozen[name] = sectors
    }
  }

  /// The stamp of each sector; a sector with two of them is told as one that nobody wrote.
  private func read(_ name: String, at socket: String) async throws -> [UInt64] {
    let data = try NBDClient(socket).perform(.read, length: Self.blocks * Self.blockLength)
    guard data.error == 0 else { throw TestEnvironmentError("\(name) is not read: \(data.error)") }
    return data.data.withUnsafeBytes { bytes in
      let words = bytes.bindMemory(to: UInt64.self)
      return stride(from: 0, to: words.count, by: 64).map { start in
        words[start..<start + 64].allSatisfy { $0 == words[start] } ? words[start] : .max
      }
    }
  }
}
