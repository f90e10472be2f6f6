import Glibc
import Synchronization

/// A file that is read from its start to its end, once.
struct RawFile: ~Copyable {
  let path: String
  let size: Int64
  private let descriptor: CInt

  /// - Throws: `CommandError` where it is no regular file or block device that can be read.
  init(_ path: String) throws {
    let descriptor = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK)
    guard descriptor >= 0 else { throw Self.failure("open", path) }
    var status = stat()
    let known = fstat(descriptor, &status) == 0
    // A pipe has no size and cannot be read twice.
    let kind = status.st_mode & S_IFMT
    let end = known && (kind == S_IFREG || kind == S_IFBLK) ? lseek(descriptor, 0, SEEK_END) : -1
    guard end >= 0 else {
      close(descriptor)
      throw CommandError(.invalidInput, path, "this is not a file")
    }
    self.path = path
    self.descriptor = descriptor
    size = Int64(end)
  }

  deinit { close(descriptor) }

  /// Bytes at `offset`; fewer only at the end of the file.
  func read(at offset: Int64, count: Int) throws -> [UInt8] {
    var done = 0
    var problem: CommandError?
    let bytes = [UInt8](unsafeUninitializedCapacity: count) { buffer, initialized in
      while done < count {
        let got = pread(descriptor, buffer.baseAddress.map { $0 + done }, count - done, off_t(offset) + off_t(done))
        if got < 0, errno == EINTR { continue }
        if got < 0 { problem = Self.failure("read", path) }
        if got <= 0 { break }
        done += got
      }
      initialized = done
    }
    if let problem { throw problem }
    return bytes
  }

  /// Where the file has data; nil where its file system does not tell.
  func dataExtents() -> [DataExtent]? {
    // SEEK_DATA and SEEK_HOLE, lseek(2).
    let (seekData, seekHole): (CInt, CInt) = (3, 4)
    var extents: [DataExtent] = []
    var offset: off_t = 0
    while offset < off_t(size) {
      let start = lseek(descriptor, offset, seekData)
      if start < 0 { return errno == ENXIO ? extents : nil }
      let end = min(lseek(descriptor, start, seekHole), off_t(size))
      guard end > start else { return nil }
      extents.append(DataExtent(offset: Int64(start), length: Int64(end - start)))
      offset = end
    }
    return extents
  }

  private static func failure(_ operation: String, _ path: String) -> CommandError {
    CommandError(.invalidInput, "\(operation) \(path)", String(cString: strerror(errno)))
  }
}

/// A folder for one intermediate file, removed at the end, also where a signal ends the process.
struct TemporaryFolder: ~Copyable {
  /// The one file in it.
  let file: String
  private let path: String

  init(in parent: String) throws {
    var template = Array("\(parent)/bmctl-XXXXXX".utf8CString)
    guard mkdtemp(&template) != nil else {
      throw CommandError(
        .failure, "make a folder in \(parent)", String(cString: strerror(errno)),
        remedy: "Name a folder with enough space: --temporary-folder")
    }
    path = String(decoding: template.dropLast().map { UInt8(bitPattern: $0) }, as: UTF8.self)
    file = "\(path)/disk.raw"
    Cleanup.install(file: file, folder: path)
  }

  deinit {
    unlink(file)
    rmdir(path)
  }

  /// C strings for a signal handler, which must not allocate, as addresses.
  private enum Cleanup {
    static let file = Atomic<UInt>(0)
    static let folder = Atomic<UInt>(0)

    static func path(_ address: borrowing Atomic<UInt>) -> UnsafePointer<CChar>? {
      UnsafePointer(bitPattern: address.load(ordering: .acquiring))
    }

    static func install(file: String, folder: String) {
      // Never freed: a signal may come at any time, and a process has one such folder.
      self.file.store(UInt(bitPattern: strdup(file)), ordering: .releasing)
      self.folder.store(UInt(bitPattern: strdup(folder)), ordering: .releasing)
      for number in [SIGINT, SIGTERM, SIGHUP] {
        var action = sigaction()
        action.__sigaction_handler.sa_handler = { number in
          if let file = Cleanup.path(Cleanup.file) { unlink(file) }
          if let folder = Cleanup.path(Cleanup.folder) { rmdir(folder) }
          _exit(128 + number)
        }
        sigaction(number, &action, nil)
      }
    }
  }
}
