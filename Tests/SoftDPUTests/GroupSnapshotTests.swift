import Dispatch
import Glibc
import JSON
import JSONRPC
import Synchronization
import TestSupport
import Testing

/// Snapshots of several disks at one moment, while somebody writes to them in an order that must never be seen reversed.
///
/// `YCLOUD_CRASH_ROUNDS` and `YCLOUD_CRASH_SEED` as for `LvolCrashTests`.
@Suite(.serialized) struct GroupSnapshotTests {
  private static let fewRounds: UInt64 = 8
  private static let pairs = 4
  private static let blockLength = 4096
  private static let megabytes = 64

  /// A softdpu with two files of one file system, shown over NBD.
  private struct Disks {
    let fileSystem: ReflinkFileSystem
    let directory: TemporaryDirectory
    let softDPU: SoftDPUProcess
    var client: JSONRPCClient { softDPU.client }
    var groups: String { "\(fileSystem.path)/groups" }

    init(_ fileSystem: ReflinkFileSystem, _ directory: TemporaryDirectory) async throws {
      self.fileSystem = fileSystem
      self.directory = directory
      softDPU = try await SoftDPUProcess(directory)
      for name in ["a", "b"] {
        let file = "\(fileSystem.path)/\(name).img"
        if access(file, F_OK) != 0 {
          let fd = open(file, O_RDWR | O_CREAT | O_CLOEXEC, 0o600)
          _ = ftruncate(fd, off_t(GroupSnapshotTests.megabytes) << 20)
          close(fd)
        }
        // A softdpu that was killed brings them back itself.
        _ = try? await client.call(
          "bdev_aio_create", ["name": .string(name), "filename": .string(file), "block_size": 512])
        _ = try? await client.call(
          "nbd_start_disk", ["bdev_name": .string(name), "nbd_device": .string(directory.file("\(name).sock"))])
      }
    }

    func capture(_ group: String, _ names: [String] = ["a", "b"], limit: Int64 = 2000) async throws -> JSONValue {
      try await client.call(
        "bdev_snapshot_files",
        [
          "folder": .string("\(groups)/\(group)"), "hold_limit_ms": .integer(limit),
          "files": .array(names.map { ["name": .string($0), "file": .string("\($0).img")] }),
        ])
    }

    /// The number in each block that the writers write.
    func numbers(_ group: String, _ name: String) -> [UInt64] {
      let fd = open("\(groups)/\(group)/\(name).img", O_RDONLY | O_CLOEXEC)
      defer { close(fd) }
      return (0..<GroupSnapshotTests.pairs).map { pair in
        var number: UInt64 = .max
        _ = pread(fd, &number, 8, off_t(pair * GroupSnapshotTests.blockLength))
        return number
      }
    }

    /// How many snapshots of a pair show the second write without the first.
    func reversed(_ a: [UInt64], _ b: [UInt64]) -> Int { zip(a, b).count { $0 < $1 } }
  }

  /// Writes a number to the one disk, and when that is answered to the other, over and over.
  private final class PairWriter: Sendable {
    private let isOver = Atomic<Bool>(false)
    private let written = Atomic<UInt64>(0)
    private let ended = DispatchSemaphore(value: 0)

    init(_ directory: TemporaryDirectory, pair: Int, from first: UInt64 = 1) {
      DispatchQueue(label: "writer \(pair)").async { [self] in
        try? work(directory, pair, first)
        ended.signal()
      }
    }

    private func work(_ directory: TemporaryDirectory, _ pair: Int, _ first: UInt64) throws {
      let a = try NBDClient(directory.file("a.sock"))
      let b = try NBDClient(directory.file("b.sock"))
      let offset = UInt64(pair * GroupSnapshotTests.blockLength)
      var number = first
      while !isOver.load(ordering: .relaxed) {
        let word = (0..<8).map { UInt8(truncatingIfNeeded: number >> ($0 * 8)) }
        let data = (0..<GroupSnapshotTests.blockLength / 8).flatMap { _ in word }
        guard try a.perform(.write, at: offset, data).error == 0, try b.perform(.write, at: offset, data).error == 0
        else { throw TestEnvironmentError("a write failed") }
        written.store(number, ordering: .relaxed)
        number += 1
      }
    }

    var count: UInt64 { written.load(ordering: .relaxed) }

    func finish() {
      isOver.store(true, ordering: .relaxed)
      ended.wait()
    }
  }

  @Test func whatWasWrittenLaterIsNeverThereWithoutWhatWasBefore() async throws {
    let disks = try await Disks(ReflinkFileSystem(), TemporaryDirectory())
    let writers = (0..<Self.pairs).map { PairWriter(disks.directory, pair: $0) }
    defer { for writer in writers { writer.finish() } }
    try await eventually("all write") { writers.allSatisfy { $0.count > 10 } }
    var pauses: [Int64] = []
    for round in 0..<80 {
      let before = writers.map(\.count)
      let answer = try await disks.capture("g\(round)")
      pauses.append(try #require(answer["pause_us"]?.int64Value))
      let (a, b) = (disks.numbers("g\(round)", "a"), disks.numbers("g\(round)", "b"))
      #expect(disks.reversed(a, b) == 0, "round \(round): \(a) \(b)")
      #expect(zip(a, b).allSatisfy { $0 <= $1 + 1 }, "round \(round): \(a) \(b)")
      // What was answered before the call is in it.
      #expect(zip(b, before).allSatisfy { $0 >= $1 }, "round \(round): \(b) \(before)")
    }
    // Each by itself: this is what the check is for, and that it sees it.
    var reversed = 0
    for round in 0..<80 where reversed == 0 {
      _ = try await disks.capture("x\(round)", ["a"])
      _ = try await disks.capture("y\(round)", ["b"])
      reversed += disks.reversed(disks.numbers("x\(round)", "a"), disks.numbers("y\(round)", "b"))
    }
    #expect(reversed > 0)
    let counts = writers.map(\.count)
    try await eventually("writes go on") { zip(writers, counts).allSatisfy { $0.count > $1 } }
    pauses.sort()
    print("pause of two disks that are written to: median \(pauses[40]) us, longest \(pauses[79]) us")
  }

  @Test(.timeLimit(CrashRounds.timeLimit(GroupSnapshotTests.fewRounds)))
  func aKillAtAnyInstructionLeavesWholeGroupsOnly() async throws {
    let rounds = CrashRounds.count(otherwise: Self.fewRounds)
    let seed = CrashRounds.firstSeed()
    let fileSystem = try await ReflinkFileSystem()
    let directory = try TemporaryDirectory()
    var whole = 0
    var first: UInt64 = 1
    for round in 0..<rounds {
      var random = SeededGenerator(seed: seed &+ round)
      let disks = try await Disks(fileSystem, directory)
      let writers = (0..<Self.pairs).map { PairWriter(directory, pair: $0, from: first) }
      let process = disks.softDPU.process
      let delay = Int.random(in: 1...120, using: &random)
      let death = Task {
        try await Task.sleep(for: .milliseconds(delay))
        process.kill()
      }
      var group = 0
      do {
        while true {
          _ = try await disks.capture("r\(round)-\(group)")
          group += 1
        }
      } catch {
        // The process is gone.
      }
      try await death.value
      for writer in writers { writer.finish() }
      first = (writers.map(\.count).max() ?? 0) + 2
      let names = try list(disks.groups)
      for name in names where !name.hasPrefix(".") {
        #expect(try list("\(disks.groups)/\(name)") == ["a.img", "b.img"], "seed \(seed), \(name)")
        let (a, b) = (disks.numbers(name, "a"), disks.numbers(name, "b"))
        #expect(disks.reversed(a, b) == 0, "seed \(seed), \(name): \(a) \(b)")
        var status = stat()
        #expect(stat("\(disks.groups)/\(name)/b.img", &status) == 0 && status.st_mode & 0o777 == 0o400)
        whole += 1
      }
      // What answered is there.
      for number in 0..<group { #expect(names.contains("r\(round)-\(number)"), "seed \(seed)") }
      #expect(names.count { $0.hasPrefix(".") } <= Int(round) + 1)
    }
    #expect(whole > 0)
    // The next of the same name takes away what was left of the last.
    let disks = try await Disks(fileSystem, directory)
    for name in try list(disks.groups) where name.hasPrefix(".") {
      let group = String(name.dropFirst().dropLast(".partial".count))
      _ = try await disks.capture(group)
      #expect(try list("\(disks.groups)/\(group)") == ["a.img", "b.img"])
    }
    #expect(try list(disks.groups).allSatisfy { !$0.hasPrefix(".") })
  }

  /// A disk that does not answer must not keep a guest's other disks waiting.
  @Test func aHoldThatCannotBeginEndsByItself() async throws {
    let disks = try await Disks(ReflinkFileSystem(), TemporaryDirectory())
    let writer = PairWriter(disks.directory, pair: 0)
    defer { writer.finish() }
    try await eventually("it writes") { writer.count > 10 }
    let elsewhere = "\(disks.directory.path)/groups"
    try await ChildProcess.run("fsfreeze", ["-f", disks.fileSystem.path])
    let thaw = Task {
      try await Task.sleep(for: .milliseconds(1500))
      try await ChildProcess.run("fsfreeze", ["-u", disks.fileSystem.path])
    }
    // The writer is in the kernel's hands now, and stays there.
    var code: Int?
    let start = ContinuousClock.now
    do {
      _ = try await disks.client.call(
        "bdev_snapshot_files",
        [
          "folder": .string("\(elsewhere)/stuck"), "hold_limit_ms": 100,
          "files": [["name": "a", "file": "a.img"], ["name": "b", "file": "b.img"]],
        ])
    } catch let error as JSONRPCError {
      code = error.serverCode
    }
    let took = ContinuousClock.now - start
    try await thaw.value
    #expect(code == -110, "it took \(took)")
    #expect(try list(elsewhere) == [])
    let count = writer.count
    try await eventually("writes go on") { writer.count > count + 10 }
    _ = try await disks.capture("after")
  }

  @Test func refusalsChangeNothing() async throws {
    let disks = try await Disks(ReflinkFileSystem(), TemporaryDirectory())
    _ = try await disks.client.call(
      "bdev_malloc_create", ["name": "memory", "num_blocks": 2048, "block_size": 512])
    func refusal(_ parameters: JSONValue) async throws -> Int? {
      do {
        _ = try await disks.client.call("bdev_snapshot_files", parameters)
        return nil
      } catch let error as JSONRPCError {
        return error.serverCode
      }
    }
    let folder = JSONValue.string("\(disks.groups)/one")
    let a: JSONValue = ["name": "a", "file": "a.img"]
    #expect(try await refusal(["folder": folder, "files": [["name": "none", "file": "a.img"]]]) == -19)
    #expect(try await refusal(["folder": folder, "files": [["name": "memory", "file": "a.img"]]]) == -22)
    #expect(try await refusal(["folder": folder, "files": [["name": "a", "file": "../a.img"]]]) == -22)
    #expect(try await refusal(["folder": folder, "files": [["name": "a", "file": ".a"]]]) == -22)
    #expect(try await refusal(["folder": folder, "files": [a, a]]) == -22)
    #expect(try await refusal(["folder": folder, "files": []]) == -22)
    #expect(try await refusal(["folder": "one", "files": [a]]) == -22)
    #expect(try await refusal(["folder": "/tmp/../etc/x", "files": [a]]) == -22)
    #expect(try await refusal(["folder": folder, "files": [a], "hold_limit_ms": 0]) == -22)
    #expect(try await refusal(["folder": folder, "files": [a], "hold_limit_ms": 60000]) == -22)
    #expect(try await refusal(["folder": folder, "files": [a], "more": true]) == -32603)
    #expect(try await refusal(["folder": .string("\(disks.directory.path)/other/one"), "files": [a]]) == -18)
    #expect(access(disks.groups, F_OK) != 0)
    #expect(try list("\(disks.directory.path)/other") == [])
    _ = try await disks.capture("one", ["a"])
    #expect(try await refusal(["folder": folder, "files": [a]]) == -17)
  }

  private func list(_ path: String) throws -> [String] {
    guard let directory = opendir(path) else { throw TestEnvironmentError("cannot list \(path): \(errno)") }
    defer { closedir(directory) }
    var names: [String] = []
    while let entry = readdir(directory) {
      let name = withUnsafePointer(to: &entry.pointee.d_name) {
        String(cString: UnsafeRawPointer($0).assumingMemoryBound(to: CChar.self))
      }
      if name != ".", name != ".." { names.append(name) }
    }
    return names.sorted()
  }
}
