import Glibc
import Storage
import TestSupport
import Testing

/// Snapshots that the data plane has taken together, as they become snapshots of the pool.
@Suite struct SnapshotGroupTests {
  private func snapshotHandle(_ name: String) throws -> SnapshotHandle { try SnapshotHandle(name) }

  private func capture(_ pool: TestPool, _ group: String, _ volumes: [String: UInt8]) throws {
    let folder = "\(pool.path)/groups/\(group)"
    guard mkdir(folder, 0o700) == 0 else { throw TestEnvironmentError("cannot make \(folder)") }
    for (volume, byte) in volumes {
      close(open("\(folder)/\(volume).img", O_WRONLY | O_CREAT | O_CLOEXEC, 0o600))
      try writeFile("\(folder)/\(volume).img", [UInt8](repeating: byte, count: 8192))
    }
  }

  @Test func eachVolumeIsMadeOfWhatItsGroupHas() async throws {
    let test = try await TestPool()
    let pool = try ReflinkPool(path: test.path)
    _ = try await pool.create(handle("pvc-a"), sizeBytes: mebibyte)
    _ = try await pool.create(handle("pvc-b"), sizeBytes: mebibyte)
    try capture(test, "g-1", ["pvc-a": 1, "pvc-b": 2])
    let group = try SnapshotHandle("g-1")
    let a = try await pool.adoptSnapshot(of: handle("pvc-a"), from: group, as: snapshotHandle("snapshot-a"))
    #expect(a.sizeBytes == 8192)
    // Again, as after a crash that lost the answer.
    #expect(try await pool.adoptSnapshot(of: handle("pvc-a"), from: group, as: snapshotHandle("snapshot-a")) == a)
    #expect(readFile("\(test.path)/snapshots/snapshot-a.img", count: 8192) == [UInt8](repeating: 1, count: 8192))
    #expect(test.files("groups/g-1") == ["pvc-b.img"])
    _ = try await pool.adoptSnapshot(of: handle("pvc-b"), from: group, as: snapshotHandle("snapshot-b"))
    #expect(readFile("\(test.path)/snapshots/snapshot-b.img", count: 8192) == [UInt8](repeating: 2, count: 8192))
    #expect(test.files("groups") == [])
    // A snapshot like any other.
    _ = try await pool.clone(snapshot: snapshotHandle("snapshot-b"), to: handle("pvc-c"), sizeBytes: mebibyte)
    try await pool.deleteSnapshot(snapshotHandle("snapshot-b"))
    #expect(test.files("snapshots") == ["snapshot-a.img"])
  }

  /// The volume by itself is another thing than what was asked for.
  @Test func withoutTheGroupThereIsNoSnapshot() async throws {
    let test = try await TestPool()
    let pool = try ReflinkPool(path: test.path)
    _ = try await pool.create(handle("pvc-a"), sizeBytes: mebibyte)
    try capture(test, "g-1", ["pvc-b": 2])
    // What is being made has no name of a group yet.
    try capture(test, ".g-2.partial", ["pvc-a": 1])
    for group in ["g-1", "g-2", "g-3"] {
      await #expect(throws: StorageError.self) {
        try await pool.adoptSnapshot(
          of: handle("pvc-a"), from: SnapshotHandle(group), as: snapshotHandle("snapshot-a"))
      }
    }
    #expect(throws: StorageError.self) { try SnapshotHandle("../snapshots") }
    #expect(test.files("snapshots") == [])
    // A link that leads out of the pool is no content.
    #expect(symlink("/etc/passwd", "\(test.path)/groups/g-1/pvc-a.img") == 0)
    await #expect(throws: StorageError.self) {
      try await pool.adoptSnapshot(of: handle("pvc-a"), from: SnapshotHandle("g-1"), as: snapshotHandle("snapshot-a"))
    }
  }

  @Test func whatNobodyTakesIsRemovedAfterAWhile() async throws {
    let test = try await TestPool()
    let pool = try ReflinkPool(path: test.path)
    try capture(test, "g-1", ["pvc-a": 1])
    try capture(test, ".g-2.partial", ["pvc-a": 1])
    var collector = GroupCollector(pool: pool, grace: .seconds(600))
    let start = ContinuousClock.now
    #expect(try await collector.sweep(now: start) == [])
    try capture(test, "g-3", ["pvc-a": 1])
    #expect(try await collector.sweep(now: start + .seconds(599)) == [])
    #expect(try await collector.sweep(now: start + .seconds(600)) == [".g-2.partial", "g-1"])
    #expect(test.files("groups") == ["g-3"])
  }

  @Test func theContentOfAGroupedSnapshotIsPlannedFromTheGroup() throws {
    var content = ContentView(name: "c", uid: "u", driver: StorageNames.driver, deletionPolicy: "Delete")
    content.volumeHandle = "pvc-a"
    content.snapshotUID = "1"
    var view = ContentSituation(content: content)
    let snapshot = try snapshotHandle("snapshot-1")
    let group = try SnapshotHandle("g-1")
    #expect(plan(view) == [.take(of: handle("pvc-a"), as: snapshot)])
    view.group = "g-1"
    #expect(plan(view) == [.adopt(of: handle("pvc-a"), from: group, as: snapshot)])
    view.group = "../../volumes"
    guard case .fail? = plan(view).first else {
      Issue.record("\(plan(view))")
      return
    }
  }
}
