import Glibc
import NIOCore
import Storage
import TestSupport
import Testing

@Suite struct ReflinkPoolTests {
  @Test func createsSparseVolumesAndIsIdempotent() async throws {
    let mount = try await TestPool()
    let pool = try mount.open()
    let volume = try await pool.create(handle("pvc-a"), sizeBytes: 100 * mebibyte)
    #expect(volume.sizeBytes == 100 * mebibyte)
    #expect(volume.allocatedBytes == 0)
    let again = try await pool.create(handle("pvc-a"), sizeBytes: 100 * mebibyte)
    #expect(again == volume)
    #expect(mount.files("volumes") == ["pvc-a.img"])
    #expect(mount.files("staging") == [])
    let larger = await #expect(throws: StorageError.self) {
      try await pool.create(handle("pvc-a"), sizeBytes: 101 * mebibyte)
    }
    #expect(larger?.code == .conflict)
    #expect(try await pool.volumes() == [volume])
    try await pool.delete(handle("pvc-a"))
    try await pool.delete(handle("pvc-a"))
    #expect(try await pool.volume(handle("pvc-a")) == nil)
    #expect(mount.files("volumes") + mount.files("trash") == [])
  }

  @Test func clonesShareTheirContentAndLiveOnTheirOwn() async throws {
    let mount = try await TestPool()
    let pool = try mount.open()
    _ = try await pool.create(handle("source"), sizeBytes: 64 * mebibyte)
    let content = [UInt8](repeating: 0xA5, count: Int(32 * mebibyte))
    try await upload(content, into: handle("source"), of: pool)
    let before = try await pool.capacity()
    let clone = try await pool.clone(handle("source"), to: handle("clone"), sizeBytes: 100 * mebibyte)
    let after = try await pool.capacity()
    #expect(clone.sizeBytes == 100 * mebibyte)
    #expect(before.freeBytes - after.freeBytes < mebibyte)
    #expect(after.provisionedBytes == 164 * mebibyte)

    try await pool.delete(handle("source"))
    #expect(readFile("\(mount.path)/volumes/clone.img", count: content.count) == content)
    let rest = readFile("\(mount.path)/volumes/clone.img", at: content.count, count: 4096)
    #expect(rest == [UInt8](repeating: 0, count: 4096))
  }

  @Test func refusesBadClones() async throws {
    let mount = try await TestPool()
    let pool = try mount.open()
    _ = try await pool.create(handle("source"), sizeBytes: 10 * mebibyte)
    let absent = await #expect(throws: StorageError.self) {
      try await pool.clone(handle("absent"), to: handle("clone"), sizeBytes: 10 * mebibyte)
    }
    #expect(absent?.code == .notFound)
    let small = await #expect(throws: StorageError.self) {
      try await pool.clone(handle("source"), to: handle("clone"), sizeBytes: 9 * mebibyte)
    }
    #expect(small?.code == .invalidSize)
    let upload = try await pool.beginUpload(handle("source"))
    let busy = await #expect(throws: StorageError.self) {
      try await pool.clone(handle("source"), to: handle("clone"), sizeBytes: 10 * mebibyte)
    }
    #expect(busy?.code == .busy)
    await upload.abort()
    _ = try await pool.clone(handle("source"), to: handle("clone"), sizeBytes: 10 * mebibyte)
    #expect(mount.files("staging") == [])
  }

  @Test func limitsWhatItPromises() async throws {
    let mount = try await TestPool()
    let pool = try mount.open(.init(overcommitRatio: 2, reserveFraction: 0.05))
    let total = try await pool.capacity().totalBytes
    let tooLarge = await #expect(throws: StorageError.self) {
      try await pool.create(handle("a"), sizeBytes: total + mebibyte)
    }
    #expect(tooLarge?.code == .exceedsPool)
    #expect(tooLarge?.isWaitingForSpace == false)
    _ = try await pool.create(handle("a"), sizeBytes: total)
    _ = try await pool.create(handle("b"), sizeBytes: total)
    let overcommitted = await #expect(throws: StorageError.self) {
      try await pool.create(handle("c"), sizeBytes: mebibyte)
    }
    #expect(overcommitted?.code == .overcommitted)
    #expect(overcommitted?.isWaitingForSpace == true)
    try await pool.delete(handle("a"))
    _ = try await pool.create(handle("c"), sizeBytes: mebibyte)
    #expect(try await pool.capacity().provisionedBytes == total + mebibyte)
    let nothing = await #expect(throws: StorageError.self) { try await pool.create(handle("d"), sizeBytes: 0) }
    #expect(nothing?.code == .invalidSize)
  }

  @Test func aFullPoolTakesNothingNewUntilThereIsRoom() async throws {
    let mount = try await TestPool(sizeMiB: 320)
    let pool = try mount.open()
    let filler = "\(mount.path)/filler"
    let capacity = try await pool.capacity()
    let free = capacity.freeBytes - capacity.totalBytes / 50
    try await ChildProcess.run("fallocate", ["-l", "\(free)", filler])
    let full = await #expect(throws: StorageError.self) { try await pool.create(handle("a"), sizeBytes: mebibyte) }
    #expect(full?.code == .poolFull)
    #expect(mount.files("volumes") + mount.files("staging") == [])
    unlink(filler)
    try await eventually("room in the pool") {
      _ = try await pool.create(handle("a"), sizeBytes: mebibyte)
      return true
    }
  }

  @Test func keepsASecondProcessOut() async throws {
    let mount = try await TestPool()
    let pool = try mount.open()
    let error = #expect(throws: StorageError.self) { try mount.open() }
    #expect(error?.code == .poolInUse)
    withExtendedLifetime(pool) {}
  }

  @Test func removesWhatADeadProcessLeft() async throws {
    let mount = try await TestPool()
    do {
      let pool = try mount.open()
      _ = try await pool.create(handle("kept"), sizeBytes: mebibyte)
    }
    for name in ["staging/half.img", "staging/x.upload-3", "trash/old.img", "volumes/NOT-OURS.img"] {
      close(open("\(mount.path)/\(name)", O_CREAT | O_WRONLY, 0o600))
    }
    // A program that another test is starting may hold a copy of the lock until it runs.
    let pool = try await eventualValue { try mount.open() }
    #expect(pool.recovery.volumes == 1)
    #expect(pool.recovery.removedFromStaging == 2)
    #expect(pool.recovery.removedFromTrash == 1)
    #expect(mount.files("staging") + mount.files("trash") == [])
    #expect(try await pool.volumes().map(\.handle.name) == ["kept"])
    #expect(mount.files("volumes") == ["NOT-OURS.img", "kept.img"])
  }

  @Test func retainedVolumesCanBeBroughtBack() async throws {
    let mount = try await TestPool()
    let pool = try mount.open()
    _ = try await pool.create(handle("a"), sizeBytes: mebibyte)
    try await pool.retain(handle("a"))
    try await pool.retain(handle("a"))
    #expect(try await pool.volume(handle("a")) == nil)
    #expect(mount.files("retained") == ["a.img"])
    #expect(try await pool.restore(handle("a")) == true)
    #expect(try await pool.restore(handle("a")) == false)
    #expect(try await pool.volume(handle("a"))?.sizeBytes == mebibyte)
    #expect(try await pool.capacity().provisionedBytes == mebibyte)
  }

  @Test func refusesFileSystemsThatCannotClone() async throws {
    let mount = try await TestPool(makeOptions: "-m reflink=0")
    let error = #expect(throws: StorageError.self) { try mount.open() }
    #expect(error?.code == .poolUnusable)
    #expect(error?.message.contains("mkfs.xfs -m reflink=1") == true)
    let missing = #expect(throws: StorageError.self) { try ReflinkPool(path: "/nonexistent/pool") }
    #expect(missing?.code == .poolUnusable)
  }

  @Test func cloningIsFastWhateverTheSize() async throws {
    let mount = try await TestPool(sizeMiB: 3072)
    let pool = try mount.open()
    _ = try await pool.create(handle("image"), sizeBytes: 2048 * mebibyte)
    let upload = try await pool.beginUpload(handle("image"))
    var random = SeededGenerator(seed: 1)
    // 256 MiB of data in 128 separate extents over the whole volume.
    let data = ByteBuffer(bytes: random.bytes(4096) + [UInt8](repeating: 7, count: (2 << 20) - 4096))
    let hole = ByteBuffer(repeating: 0, count: 14 << 20)
    for _ in 0..<128 {
      try await upload.append(data)
      try await upload.append(hole)
    }
    _ = try await upload.commit()
    var fastest = Duration.seconds(10)
    for index in 0..<5 {
      let start = ContinuousClock.now
      _ = try await pool.clone(handle("image"), to: handle("clone-\(index)"), sizeBytes: 2048 * mebibyte)
      fastest = min(fastest, ContinuousClock.now - start)
    }
    #expect(fastest < .milliseconds(50))
  }
}

@Suite struct UploadTests {
  @Test func holesStayHoles() async throws {
    let mount = try await TestPool()
    let pool = try mount.open()
    _ = try await pool.create(handle("a"), sizeBytes: 64 * mebibyte)
    var random = SeededGenerator(seed: 2)
    let content =
      [UInt8](repeating: 0, count: Int(4 * mebibyte)) + random.bytes(10_000)
      + [UInt8](repeating: 0, count: Int(4 * mebibyte)) + random.bytes(3)
    // In pieces that do not fit blocks.
    let upload = try await pool.beginUpload(handle("a"))
    for start in stride(from: 0, to: content.count, by: 333_333) {
      try await upload.append(ByteBuffer(bytes: content[start..<min(start + 333_333, content.count)]))
    }
    let volume = try await upload.commit()
    #expect(volume.sizeBytes == 64 * mebibyte)
    #expect(volume.allocatedBytes < 100_000)
    #expect(readFile("\(mount.path)/volumes/a.img", count: content.count) == content)
    #expect(mount.files("staging") == [])
    #expect(await pool.isUploading(handle("a")) == false)
  }

  @Test func nothingIsSeenOfAnAbortedUpload() async throws {
    let mount = try await TestPool()
    let pool = try mount.open()
    _ = try await pool.create(handle("a"), sizeBytes: mebibyte)
    let first = try await pool.beginUpload(handle("a"))
    let second = await #expect(throws: StorageError.self) { _ = try await pool.beginUpload(handle("a")) }
    #expect(second?.code == .busy)
    try await first.append(ByteBuffer(repeating: 1, count: 4096))
    await first.abort()
    #expect(mount.files("staging") == [])
    #expect(readFile("\(mount.path)/volumes/a.img", count: 4096) == [UInt8](repeating: 0, count: 4096))
    try await upload([UInt8](repeating: 2, count: 4096), into: handle("a"), of: pool)
    #expect(readFile("\(mount.path)/volumes/a.img", count: 4096) == [UInt8](repeating: 2, count: 4096))
  }

  @Test func contentIsBoundedByTheVolume() async throws {
    let mount = try await TestPool()
    let pool = try mount.open()
    _ = try await pool.create(handle("a"), sizeBytes: mebibyte)
    let upload = try await pool.beginUpload(handle("a"))
    try await upload.append(ByteBuffer(repeating: 1, count: Int(mebibyte)))
    let error = await #expect(throws: StorageError.self) { try await upload.append(ByteBuffer(repeating: 1, count: 1)) }
    #expect(error?.code == .contentMismatch)
    await upload.abort()
  }

  @Test func aVolumeDeletedDuringItsUploadStaysDeleted() async throws {
    let mount = try await TestPool()
    let pool = try mount.open()
    _ = try await pool.create(handle("a"), sizeBytes: mebibyte)
    let upload = try await pool.beginUpload(handle("a"))
    try await upload.append(ByteBuffer(repeating: 1, count: 4096))
    try await pool.delete(handle("a"))
    let append = await #expect(throws: StorageError.self) {
      try await upload.append(ByteBuffer(repeating: 1, count: 4096))
    }
    #expect(append?.code == .discarded)
    let commit = await #expect(throws: StorageError.self) { _ = try await upload.commit() }
    #expect(commit?.code == .discarded)
    await upload.abort()
    #expect(mount.files("volumes") + mount.files("staging") == [])
  }
}

@Suite struct VolumeHandleTests {
  @Test(arguments: ["", "a/b", "..", ".", "A", "a.img", "a b", "a\n", "a\0", "ü", String(repeating: "a", count: 129)])
  func refusesWhatAPathCouldBeBuiltOf(name: String) {
    #expect(throws: StorageError.self) { try VolumeHandle(name) }
  }

  @Test func randomTextsNeverGetThroughWithForeignBytes() {
    var random = SeededGenerator(seed: 3)
    for _ in 0..<20_000 {
      let text = String(decoding: random.bytes(Int.random(in: 0...6, using: &random)), as: UTF8.self)
      if let handle = try? VolumeHandle(text) {
        #expect(handle.name.utf8.allSatisfy { "abcdefghijklmnopqrstuvwxyz0123456789-".utf8.contains($0) })
      }
    }
  }
}

private func upload(_ content: [UInt8], into handle: VolumeHandle, of pool: ReflinkPool) async throws {
  let upload = try await pool.beginUpload(handle)
  try await upload.append(ByteBuffer(bytes: content))
  _ = try await upload.commit()
}

func readFile(_ path: String, at offset: Int = 0, count: Int) -> [UInt8] {
  let file = open(path, O_RDONLY)
  guard file >= 0 else { return [] }
  defer { close(file) }
  var bytes = [UInt8](repeating: 0, count: count)
  let read = pread(file, &bytes, count, off_t(offset))
  return Array(bytes.prefix(max(read, 0)))
}
