import Glibc
import Storage
import TestSupport

/// A pool on a file system of its own for one test.
final class TestPool: Sendable {
  private let fileSystem: ReflinkFileSystem
  var path: String { fileSystem.path }

  /// - Parameter sizeMiB: XFS takes 300 at least.
  init(sizeMiB: Int = 512, makeOptions: String = "-m reflink=1") async throws {
    fileSystem = try await ReflinkFileSystem(sizeMiB: sizeMiB, makeOptions: makeOptions)
  }

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
