import Glibc

/// A file system of its own for one test: XFS with reflink in a sparse file, mounted through a loop device.
///
/// It goes with the value, and also when the test process is killed: a small shell waits for that.
public final class ReflinkFileSystem: Sendable {
  private let directory: TemporaryDirectory
  /// Where it is mounted.
  public let path: String

  /// - Parameter sizeMiB: XFS takes 300 at least.
  public init(sizeMiB: Int = 512, makeOptions: String = "-m reflink=1") async throws {
    try TestEnvironment.requireRoot(for: "mounting a file system")
    _ = try TestEnvironment.requireTool("mkfs.xfs")
    let directory = try TemporaryDirectory()
    self.directory = directory
    path = directory.file("pool")
    // The small shell looks at the folder around it: after a power cut the file system's own root cannot be looked at.
    let script = """
      set -e
      truncate -s \(sizeMiB)M \(directory.path)/pool.xfs
      mkfs.xfs -q \(makeOptions) \(directory.path)/pool.xfs
      mkdir \(directory.path)/pool
      mount -o loop \(directory.path)/pool.xfs \(directory.path)/pool
      setsid sh -c '
        while kill -0 \(getpid()) 2>/dev/null && [ -d \(directory.path) ]; do sleep 1; done
        umount -l \(directory.path)/pool; rm -rf \(directory.path)' </dev/null >/dev/null 2>&1 &
      """
    try await ChildProcess.run("sh", ["-c", script])
  }

  /// Does to it what a power cut does: what was not flushed is gone, and from now on everything fails.
  public func cutPower() async throws { try await ChildProcess.run("xfs_io", ["-x", "-c", "shutdown", path]) }

  /// Mounts it again, as after a power cut. Nobody may have a file open.
  public func mountAgain() async throws {
    // A program that was killed may have requests with the kernel for a moment longer.
    try await eventually(within: .seconds(20), "nobody uses the file system") { umount2(path, 0) == 0 }
    try await ChildProcess.run("mount", ["-o", "loop", "\(directory.path)/pool.xfs", path])
    // Where another mount namespace still has the old one, the kernel gives that out again, without its power.
    try await ChildProcess.run("sh", ["-c", "touch '\(path)/.probe' && rm '\(path)/.probe'"])
  }

  deinit { umount2(path, Int32(MNT_DETACH)) }
}
