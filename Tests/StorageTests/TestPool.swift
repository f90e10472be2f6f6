import Glibc
import Storage
import TestSupport

/// A file system of its own for one test: XFS with reflink in a sparse file, mounted through a loop device.
///
/// It goes with the value, and also when the test process is killed: a small shell waits for that.
final class TestPool: Sendable {
  private let directory: TemporaryDirectory
  let path: String

  /// - Parameter sizeMiB: XFS takes 300 at least.
  init(sizeMiB: Int = 512, makeOptions: String = "-m reflink=1") async throws {
    try TestEnvironment.requireRoot(for: "mounting a file system")
    _ = try TestEnvironment.requireTool("mkfs.xfs")
    let directory = try TemporaryDirectory()
    self.directory = directory
    path = directory.file("pool")
    let script = """
      set -e
      truncate -s \(sizeMiB)M \(directory.path)/pool.xfs
      mkfs.xfs -q \(makeOptions) \(directory.path)/pool.xfs
      mkdir \(directory.path)/pool
      mount -o loop \(directory.path)/pool.xfs \(directory.path)/pool
      setsid sh -c '
        while kill -0 \(getpid()) 2>/dev/null && mountpoint -q \(directory.path)/pool; do sleep 1; done
        umount -l \(directory.path)/pool; rm -rf \(directory.path)' </dev/null >/dev/null 2>&1 &
      """
    try await ChildProcess.run("sh", ["-c", script])
  }

  deinit { umount2(path, Int32(MNT_DETACH)) }

  func open(_ policy: ReflinkPool.Policy = .init()) throws -> ReflinkPool {
    try ReflinkPool(path: path, policy: policy)
  }

  /// The files of one of the pool's folders.
  func files(_ folder: String) -> [String] {
    guard let directory = opendir("\(path)/\(folder)") else { return [] }
    defer { closedir(directory) }
    var names: [String] = []
    while let entry = readdir(directory) {
      names.append(
        withUnsafePointer(to: &entry.pointee.d_name) {
          String(cString: UnsafeRawPointer($0).assumingMemoryBound(to: CChar.self))
        })
    }
    return names.filter { $0 != "." && $0 != ".." }.sorted()
  }
}

func handle(_ name: String) -> VolumeHandle {
  guard let handle = try? VolumeHandle(name) else { preconditionFailure("\(name) is no handle") }
  return handle
}

let mebibyte: Int64 = 1 << 20
