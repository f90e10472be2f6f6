import Glibc
import JSON
import JSONRPC
import TestSupport
import Testing

/// SIGKILL and power cuts at random moments of writes, snapshots, clones, resizes and deletes. What was flushed is there,
/// the store opens, and no snapshot changes when its origin does. A power cut is the file system's own: what it had not
/// brought to its disk is gone.
///
/// `YCLOUD_CRASH_ROUNDS` sets how often; the seed of a round that failed is told, `YCLOUD_CRASH_SEED` begins with it.
@Suite(.serialized) struct LvolCrashTests {
  private static let fewRounds: UInt64 = 25

  /// What the store has to have. Operations whose answer was lost may have happened or not.
  private struct Model {
    /// The byte that fills a volume's first 64 KiB, by name; several where a write was cut short.
    var contents: [String: Set<UInt8>] = [:]
    var snapshots: Set<String> = []
    var sizes: [String: Set<Int64>] = [:]
    /// Perhaps there, perhaps not.
    var doubtful: Set<String> = []
    /// Perhaps one of the two, perhaps the other; never both, and never none.
    var renames: [(old: String, new: String)] = []
    /// Taken out of use for writing.
    var readOnly: Set<String> = []
    /// The store's name; several where its renaming was cut short.
    var store = "lvs"
    var stores: Set<String> = ["lvs"]
    /// How often each kind of operation was answered.
    var done: [String: Int] = [:]
  }

  @Test(.timeLimit(CrashRounds.timeLimit(LvolCrashTests.fewRounds)))
  func survivesKillsAtAnyMoment() async throws {
    let rounds = CrashRounds.count(otherwise: Self.fewRounds)
    let first = CrashRounds.firstSeed()
    let fileSystem = try await ReflinkFileSystem()
    let directory = try TemporaryDirectory()
    var model = Model()
    var number = 0
    for round in 0..<rounds {
      var random = SeededGenerator(seed: first &+ round)
      let softDPU = try await SoftDPUProcess(directory, note: "seed \(first &+ round)")
      let (process, client) = (softDPU.process, softDPU.client)
      if round == 0 {
        _ = try await client.call(
          "bdev_aio_create", ["name": "pool", "filename": .string(fileSystem.path), "block_size": 512])
        _ = try await client.call(
          "bdev_lvol_create_lvstore", ["bdev_name": "pool", "lvs_name": "lvs", "cluster_sz": 65536])
      }
      try await compare(&model, client, directory, "seed \(first &+ round)")
      let death = Death(
        process, powerOf: round % 2 == 1 ? fileSystem : nil, after: Int.random(in: 5...250, using: &random))
      var operations = SeededGenerator(seed: first &+ round &+ 1_000_003)
      do {
        while true { try await step(&model, client, directory, &number, &operations) }
      } catch {
        // Only because the process, or its disk, is gone.
        if !death.hasBegun, process.isRunning, (try? await client.call("spdk_get_version")) != nil { throw error }
      }
      try await death.wait()
    }
    // A test of crashes in operations that were never done tests nothing.
    for kind in ["create", "snapshot", "write"] where rounds >= 20 {
      #expect(model.done[kind, default: 0] > 0, "\(model.done)")
    }
    print("crashes: \(rounds) rounds, \(model.done)")
  }

  /// One change; what is in doubt is noted before, and settled when the answer is there.
  private func step(
    _ model: inout Model, _ client: JSONRPCClient, _ directory: TemporaryDirectory, _ number: inout Int,
    _ random: inout SeededGenerator
  ) async throws {
    let volumes = model.contents.keys.filter {
      !model.snapshots.contains($0) && !model.doubtful.contains($0) && !model.readOnly.contains($0)
    }.sorted()
    let settled = model.contents.keys.filter { !model.doubtful.contains($0) }.sorted()
    number += 1
    let name = "v\(number)"
    switch Int.random(in: 0..<15, using: &random) {
    case 0,
      1 where model.contents.count < 12:
      model.doubtful.insert(name)
      model.contents[name] = [0]
      model.sizes[name] = [1 << 20]
      _ = try await client.call(
        "bdev_lvol_create",
        ["lvol_name": .string(name), "size_in_mib": 1, "lvs_name": .string(model.store), "thin_provision": true])
      model.doubtful.remove(name)
      model.done["create", default: 0] += 1
    case 2,
      3 where model.contents.count < 12:
      guard let origin = volumes.randomElement(using: &random) else { return }
      model.doubtful.insert(name)
      model.contents[name] = model.contents[origin]
      model.sizes[name] = model.sizes[origin]
      model.snapshots.insert(name)
      _ = try await client.call(
        "bdev_lvol_snapshot", ["lvol_name": .string("\(model.store)/\(origin)"), "snapshot_name": .string(name)])
      model.doubtful.remove(name)
      model.done["snapshot", default: 0] += 1
    case 4 where model.contents.count < 12:
      guard let origin = settled.filter(model.snapshots.contains).randomElement(using: &random) else { return }
      model.doubtful.insert(name)
      model.contents[name] = model.contents[origin]
      model.sizes[name] = model.sizes[origin]
      _ = try await client.call(
        "bdev_lvol_clone", ["snapshot_name": .string("\(model.store)/\(origin)"), "clone_name": .string(name)])
      model.doubtful.remove(name)
      model.done["clone", default: 0] += 1
    case 5:
      guard let volume = volumes.randomElement(using: &random) else { return }
      let megabytes = Int64.random(in: 2...9, using: &random)
      model.sizes[volume]?.insert(megabytes << 20)
      _ = try await client.call(
        "bdev_lvol_resize", ["name": .string("\(model.store)/\(volume)"), "size_in_mib": .integer(megabytes)])
      model.sizes[volume] = [megabytes << 20]
    case 6:
      guard let doomed = settled.randomElement(using: &random) else { return }
      model.doubtful.insert(doomed)
      do {
        _ = try await client.call("bdev_lvol_delete", ["name": .string("\(model.store)/\(doomed)")])
        forget(doomed, &model)
      } catch let error as JSONRPCError where error.serverCode == -32603 {
        // Clones rest on it.
        model.doubtful.remove(doomed)
      }
    case 7:
      guard let old = settled.randomElement(using: &random) else { return }
      model.renames.append((old, name))
      model.doubtful.formUnion([old, name])
      model.contents[name] = model.contents[old]
      model.sizes[name] = model.sizes[old]
      if model.snapshots.contains(old) { model.snapshots.insert(name) }
      if model.readOnly.contains(old) { model.readOnly.insert(name) }
      _ = try await client.call(
        "bdev_lvol_rename", ["old_name": .string("\(model.store)/\(old)"), "new_name": .string(name)])
      model.renames = []
      forget(old, &model)
      model.doubtful.remove(name)
      model.done["rename", default: 0] += 1
    case 8, 9:
      guard let volume = volumes.randomElement(using: &random) else { return }
      let method = Bool.random(using: &random) ? "bdev_lvol_inflate" : "bdev_lvol_decouple_parent"
      do {
        _ = try await client.call(method, ["name": .string("\(model.store)/\(volume)")])
        model.done[method, default: 0] += 1
      } catch let error as JSONRPCError where error.serverCode == -32602 {
        // It rests on nothing.
      }
    case 10:
      // Rarely: what cannot be written is of little use to the others.
      guard let volume = volumes.randomElement(using: &random), Int.random(in: 0..<3, using: &random) == 0 else {
        return
      }
      model.readOnly.insert(volume)
      _ = try await client.call("bdev_lvol_set_read_only", ["name": .string("\(model.store)/\(volume)")])
      model.done["read-only", default: 0] += 1
    case 11:
      let other = model.store == "lvs" ? "renamed" : "lvs"
      model.stores = ["lvs", "renamed"]
      _ = try await client.call(
        "bdev_lvol_rename_lvstore", ["old_name": .string(model.store), "new_name": .string(other)])
      model.store = other
      model.stores = [other]
      model.done["store", default: 0] += 1
    default:
      guard let volume = volumes.randomElement(using: &random) else { return }
      let byte = UInt8.random(in: 1...255, using: &random)
      let socket = directory.file("\(name).sock")
      _ = try await client.call(
        "nbd_start_disk", ["bdev_name": .string("\(model.store)/\(volume)"), "nbd_device": .string(socket)])
      model.contents[volume]?.insert(byte)
      _ = try await NBDTests.io("nbd+unix:///?socket=\(socket)", "write -P \(byte) 0 64k", "flush")
      model.contents[volume] = [byte]
      model.done["write", default: 0] += 1
      _ = try await client.call("nbd_stop_disk", ["nbd_device": .string(socket)])
    }
  }

  private func forget(_ name: String, _ model: inout Model) {
    model.contents[name] = nil
    model.sizes[name] = nil
    model.snapshots.remove(name)
    model.readOnly.remove(name)
    model.doubtful.remove(name)
  }

  /// Compares the store with the model, and settles what was in doubt.
  private func compare(
    _ model: inout Model, _ client: JSONRPCClient, _ directory: TemporaryDirectory, _ seed: String
  ) async throws {
    for disk in try await client.call("nbd_get_disks").arrayValue ?? [] {
      _ = try await client.call("nbd_stop_disk", ["nbd_device": disk["nbd_device"] ?? .null])
    }
    let store = try await client.call("bdev_lvol_get_lvstores")[0]?["name"]?.stringValue ?? "none"
    #expect(model.stores.contains(store), "\(seed): the store's name is \(store)")
    model.store = store
    model.stores = [store]
    let listed = try await client.call("bdev_lvol_get_lvols", ["lvs_name": .string(model.store)]).arrayValue ?? []
    let present = Set(listed.compactMap { $0["name"]?.stringValue })
    #expect(listed.allSatisfy { $0["is_degraded"]?.boolValue == false }, "\(seed)")
    for (old, new) in model.renames {
      #expect(present.contains(old) != present.contains(new), "\(seed): of \(old) and \(new) there is one")
    }
    model.renames = []
    for name in model.contents.keys.sorted() where !present.contains(name) {
      #expect(model.doubtful.contains(name), "\(seed): \(name) is gone")
      forget(name, &model)
    }
    #expect(present.subtracting(model.contents.keys).isEmpty, "\(seed): nobody made \(present)")
    model.doubtful = []
    for name in present.sorted() {
      let bdev = try await client.call("bdev_get_bdevs", ["name": .string("\(model.store)/\(name)")])[0]
      let size = (bdev?["num_blocks"]?.int64Value ?? 0) * 512
      #expect(model.sizes[name]?.contains(size) == true, "\(seed): \(name) has \(size) bytes")
      model.sizes[name] = [size]
      let socket = directory.file("check-\(name).sock")
      _ = try await client.call(
        "nbd_start_disk", ["bdev_name": .string("\(model.store)/\(name)"), "nbd_device": .string(socket)])
      let copy = directory.file("copy")
      try await ChildProcess.run("nbdcopy", ["nbd+unix:///?socket=\(socket)", copy], within: .seconds(30))
      // What was read is to stay, also over a power cut.
      if !model.snapshots.contains(name), !model.readOnly.contains(name) {
        _ = try await NBDTests.io("nbd+unix:///?socket=\(socket)", "flush")
      }
      _ = try await client.call("nbd_stop_disk", ["nbd_device": .string(socket)])
      let bytes = Self.head(of: copy, 65536)
      let found = Set(bytes)
      // A write that was cut short may be there in part: any of its 512-byte blocks is the old byte or the new one.
      #expect(found.isSubset(of: model.contents[name] ?? []), "\(seed): \(name) has \(found.sorted())")
      // What is read now is what stays; a mixture stays in doubt until it is written again.
      model.contents[name] = found
    }
  }

  private static func head(of path: String, _ count: Int) -> [UInt8] {
    let fd = open(path, O_RDONLY | O_CLOEXEC)
    defer { close(fd) }
    var buffer = [UInt8](repeating: 0xEE, count: count)
    _ = pread(fd, &buffer, count, 0)
    return buffer
  }
}
