import CLinux
import Glibc
import NIOCore
import Storage
import Synchronization
import TestSupport
import Testing

/// Snapshots and growth in a real pool.
@Suite struct SnapshotPoolTests {
  private func snapshotHandle(_ name: String) throws -> SnapshotHandle { try SnapshotHandle(name) }

  @Test func aSnapshotKeepsWhatTheVolumeHadAndCannotBeWritten() async throws {
    let mount = try await TestPool()
    let pool = try mount.open()
    let volume = try await pool.create(handle("pvc-a"), sizeBytes: 10 * mebibyte)
    let path = "\(mount.path)/volumes/pvc-a.img"
    try writeFile(path, [UInt8](repeating: 1, count: 8192))
    let before = try await pool.capacity()
    let snapshot = try await pool.takeSnapshot(of: handle("pvc-a"), as: snapshotHandle("snapshot-1"))
    #expect(snapshot.sizeBytes == volume.sizeBytes)
    #expect(abs(snapshot.creationTime / 1_000_000_000 - Int64(time(nil))) < 60)
    try writeFile(path, [UInt8](repeating: 2, count: 8192))
    // Once more is the same one.
    #expect(try await pool.takeSnapshot(of: handle("pvc-a"), as: snapshotHandle("snapshot-1")) == snapshot)
    #expect(readFile("\(mount.path)/snapshots/snapshot-1.img", count: 8192) == [UInt8](repeating: 1, count: 8192))
    #expect(try await mode("\(mount.path)/snapshots/snapshot-1.img") == "400")
    #expect(mount.files("staging") == [])
    let after = try await pool.capacity()
    #expect(after.provisionedBytes - before.provisionedBytes == 10 * mebibyte)

    let clone = try await pool.clone(
      snapshot: snapshotHandle("snapshot-1"), to: handle("pvc-b"), sizeBytes: 20 * mebibyte)
    #expect(clone.sizeBytes == 20 * mebibyte)
    let content = readFile("\(mount.path)/volumes/pvc-b.img", count: 8192)
    #expect(content == [UInt8](repeating: 1, count: 8192))
    #expect(try await mode("\(mount.path)/volumes/pvc-b.img") == "600")
    try await pool.delete(handle("pvc-a"))
    for _ in 0..<2 { try await pool.deleteSnapshot(snapshotHandle("snapshot-1")) }
    #expect(try await pool.snapshot(snapshotHandle("snapshot-1")) == nil)
    #expect(mount.files("snapshots") + mount.files("trash") == [])
    #expect(try await pool.capacity().provisionedBytes == 20 * mebibyte)
    #expect(readFile("\(mount.path)/volumes/pvc-b.img", count: 8192) == content)
  }

  @Test func whatCannotBeTakenLeavesNothing() async throws {
    let mount = try await TestPool()
    let pool = try mount.open(.init(overcommitRatio: 1))
    let absent = await #expect(throws: StorageError.self) {
      try await pool.takeSnapshot(of: handle("absent"), as: snapshotHandle("snapshot-1"))
    }
    #expect(absent?.code == .notFound)
    let total = try await pool.capacity().totalBytes
    _ = try await pool.create(handle("large"), sizeBytes: total / 3 * 2 / mebibyte * mebibyte)
    let full = await #expect(throws: StorageError.self) {
      try await pool.takeSnapshot(of: handle("large"), as: snapshotHandle("snapshot-1"))
    }
    #expect(full?.code == .overcommitted)
    let upload = try await pool.beginUpload(handle("large"))
    let busy = await #expect(throws: StorageError.self) {
      try await pool.takeSnapshot(of: handle("large"), as: snapshotHandle("snapshot-1"))
    }
    #expect(busy?.code == .busy)
    await upload.abort()
    let small = await #expect(throws: StorageError.self) {
      try await pool.clone(snapshot: snapshotHandle("none"), to: handle("pvc-b"), sizeBytes: mebibyte)
    }
    #expect(small?.code == .notFound)
    #expect(mount.files("snapshots") + mount.files("staging") == [])
  }

  @Test func aPoolThatIsOpenedAgainKnowsItsSnapshots() async throws {
    let mount = try await TestPool()
    do {
      let pool = try mount.open()
      _ = try await pool.create(handle("pvc-a"), sizeBytes: 10 * mebibyte)
      _ = try await pool.takeSnapshot(of: handle("pvc-a"), as: snapshotHandle("snapshot-1"))
    }
    // What a process that was killed leaves at its worst.
    try writeFile("\(mount.path)/staging/snapshot-2.snapshot", [1])
    try writeFile("\(mount.path)/trash/snapshot-3.snapshot", [1])
    let pool = try mount.open()
    #expect(try await pool.capacity().provisionedBytes == 20 * mebibyte)
    #expect(try await pool.snapshot(snapshotHandle("snapshot-1"))?.sizeBytes == 10 * mebibyte)
    #expect(mount.files("staging") + mount.files("trash") == [])
    #expect(try await pool.volumes().map(\.handle) == [handle("pvc-a")])
  }

  @Test func aVolumeGrowsWithinTheLimitsAndNeverShrinks() async throws {
    let mount = try await TestPool()
    let pool = try mount.open(.init(overcommitRatio: 1))
    _ = try await pool.create(handle("pvc-a"), sizeBytes: 10 * mebibyte)
    try writeFile("\(mount.path)/volumes/pvc-a.img", [7])
    for _ in 0..<2 {
      let grown = try await pool.grow(handle("pvc-a"), toBytes: 30 * mebibyte)
      #expect(grown.sizeBytes == 30 * mebibyte)
      #expect(grown.allocatedBytes < mebibyte)
    }
    #expect(try await pool.grow(handle("pvc-a"), toBytes: 20 * mebibyte).sizeBytes == 30 * mebibyte)
    #expect(try await pool.capacity().provisionedBytes == 30 * mebibyte)
    #expect(readFile("\(mount.path)/volumes/pvc-a.img", count: 2) == [7, 0])
    let total = try await pool.capacity().totalBytes
    for (bytes, code) in [(total + mebibyte, StorageError.Code.exceedsPool), (Int64.max, .exceedsPool)] {
      let error = await #expect(throws: StorageError.self) { try await pool.grow(handle("pvc-a"), toBytes: bytes) }
      #expect(error?.code == code)
    }
    _ = try await pool.create(handle("other"), sizeBytes: total / 2 / mebibyte * mebibyte)
    let over = await #expect(throws: StorageError.self) {
      try await pool.grow(handle("pvc-a"), toBytes: total / 4 * 3)
    }
    #expect(over?.code == .overcommitted)
    let absent = await #expect(throws: StorageError.self) { try await pool.grow(handle("absent"), toBytes: 1) }
    #expect(absent?.code == .notFound)
  }

  @Test func anUploadAndAGrowthDoNotUndoEachOther() async throws {
    let mount = try await TestPool()
    let pool = try mount.open()
    _ = try await pool.create(handle("pvc-a"), sizeBytes: 10 * mebibyte)
    let upload = try await pool.beginUpload(handle("pvc-a"))
    let busy = await #expect(throws: StorageError.self) {
      try await pool.grow(handle("pvc-a"), toBytes: 20 * mebibyte)
    }
    #expect(busy?.code == .busy)
    try await upload.append(ByteBuffer(repeating: 9, count: 4096))
    // As if the volume had grown just before the upload was entered.
    truncate("\(mount.path)/volumes/pvc-a.img", off_t(15 * mebibyte))
    #expect(try await upload.commit().sizeBytes == 15 * mebibyte)
    #expect(try await pool.grow(handle("pvc-a"), toBytes: 20 * mebibyte).sizeBytes == 20 * mebibyte)
  }

  /// A writer counts up in several places of a volume, one after the other. A snapshot at one moment has never a higher
  /// number in a later place, and the first and the last are one apart at most.
  @Test(arguments: [true, false]) func aSnapshotUnderAWriterIsOneMoment(direct: Bool) async throws {
    let mount = try await TestPool()
    let pool = try mount.open()
    let places = 24
    let stride = Int(mebibyte)
    _ = try await pool.create(handle("pvc-a"), sizeBytes: Int64(places * stride))
    let writer = try CountingWriter("\(mount.path)/volumes/pvc-a.img", places, stride, direct: direct)
    defer { #expect(writer.stop(), "the writer does not end") }
    try await eventually("it writes") { writer.rounds > 2 }
    var differing = 0
    for index in 0..<60 {
      let before = writer.rounds
      _ = try await pool.takeSnapshot(of: handle("pvc-a"), as: snapshotHandle("snapshot-\(index)"))
      let after = writer.rounds
      let path = "\(mount.path)/snapshots/snapshot-\(index).img"
      let numbers = (0..<places).map { place in
        readFile(path, at: place * stride, count: 4).enumerated().reduce(0) { $0 + Int($1.element) << (8 * $1.offset) }
      }
      #expect(numbers == numbers.sorted(by: >), "snapshot \(index): \(numbers)")
      let spread = (numbers.first ?? 0) - (numbers.last ?? 0)
      #expect(spread == 0 || spread == 1, "snapshot \(index): \(numbers)")
      if spread == 1 { differing += 1 }
      // What was written before is in it, and nothing from after it.
      #expect((numbers.last ?? 0) >= before, "snapshot \(index): \(before)...\(after): \(numbers)")
      #expect((numbers.first ?? 0) <= after + 1, "snapshot \(index): \(before)...\(after): \(numbers)")
      try await pool.deleteSnapshot(snapshotHandle("snapshot-\(index)"))
    }
    #expect(differing > 0, "no snapshot fell into a round, so nothing was tried")
  }

  @Test func aHundredSnapshotsAtOnce() async throws {
    let mount = try await TestPool()
    let pool = try mount.open()
    _ = try await pool.create(handle("pvc-a"), sizeBytes: 10 * mebibyte)
    try await withThrowingTaskGroup(of: Void.self) { group in
      for index in 0..<100 {
        group.addTask { _ = try await pool.takeSnapshot(of: handle("pvc-a"), as: SnapshotHandle("snapshot-\(index)")) }
      }
      try await group.waitForAll()
    }
    #expect(mount.files("snapshots").count == 100)
    #expect(mount.files("staging") == [])
  }

  private func mode(_ path: String) async throws -> String {
    String(try await ChildProcess.run("stat", ["-c", "%a", path]).prefix(3))
  }
}

/// A thread that writes a number into the places of a file, one after the other, and then the next number.
private final class CountingWriter: Sendable {
  private struct State {
    var rounds = 0
    var isStopping = false
    var hasStopped = false
  }

  private let state = Mutex(State())

  /// The number of the last round that was completed.
  var rounds: Int { state.withLock { $0.rounds } }

  init(_ path: String, _ places: Int, _ stride: Int, direct: Bool) throws {
    let file = direct ? clinux_open_direct(path, O_WRONLY) : open(path, O_WRONLY | O_CLOEXEC)
    guard file >= 0 else { throw TestEnvironmentError("cannot open \(path)") }
    let thread = Thread.start { [self] in
      var block: UnsafeMutableRawPointer?
      posix_memalign(&block, 4096, 4096)
      guard let block else { return }
      block.initializeMemory(as: UInt8.self, repeating: 0, count: 4096)
      var number: UInt32 = 1
      while !state.withLock({ $0.isStopping }) {
        block.storeBytes(of: number.littleEndian, as: UInt32.self)
        for place in 0..<places { pwrite(file, block, 4096, off_t(place * stride)) }
        state.withLock { $0.rounds = Int(number) }
        number += 1
      }
      free(block)
      close(file)
      state.withLock { $0.hasStopped = true }
    }
    guard thread else { throw TestEnvironmentError("cannot start a thread") }
  }

  /// Ends it; false where it is still writing after half a minute.
  func stop() -> Bool {
    state.withLock { $0.isStopping = true }
    for _ in 0..<30_000 {
      if state.withLock({ $0.hasStopped }) { return true }
      usleep(1000)
    }
    return false
  }
}

private enum Thread {
  private final class Body: Sendable {
    let run: @Sendable () -> Void
    init(_ run: @escaping @Sendable () -> Void) { self.run = run }
  }

  static func start(_ run: @escaping @Sendable () -> Void) -> Bool {
    var thread = pthread_t()
    let body = Unmanaged.passRetained(Body(run))
    let result = pthread_create(
      &thread, nil,
      { pointer in
        guard let pointer else { return nil }
        Unmanaged<Body>.fromOpaque(pointer).takeRetainedValue().run()
        return nil
      }, body.toOpaque())
    pthread_detach(thread)
    return result == 0
  }
}
