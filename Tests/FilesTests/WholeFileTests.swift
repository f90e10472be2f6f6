import Files
import Glibc
import TestSupport
import Testing

@Suite struct WholeFileTests {
  private static func mode(_ path: String) -> mode_t {
    var status = stat()
    return lstat(path, &status) == 0 ? status.st_mode & 0o777 : 0
  }

  private static func exists(_ path: String) -> Bool { access(path, F_OK) == 0 }

  @Test func whatIsWrittenIsReadAndNothingStandsBesideIt() throws {
    let directory = try TemporaryDirectory()
    let path = directory.file("a")
    #expect(try WholeFile.read(path, limit: 10) == nil)
    for content in [[], [1, 2, 3], [UInt8](repeating: 7, count: 100_000)] as [[UInt8]] {
      try WholeFile.replace(path, with: content)
      #expect(try WholeFile.read(path, limit: 100_000) == content)
    }
    #expect(Self.mode(path) == 0o600)
    try WholeFile.replace(path, with: [1], mode: 0o640, isDurable: false, temporary: directory.file(".a"))
    #expect(Self.mode(path) == 0o640)
    #expect(!Self.exists(path + ".new") && !Self.exists(directory.file(".a")))
  }

  @Test func aFileThatIsTooLongIsAnErrorThatNamesIt() throws {
    let directory = try TemporaryDirectory()
    let path = directory.file("a")
    try WholeFile.replace(path, with: [1, 2, 3])
    #expect(throws: FileError(EFBIG, "read \(path)")) { try WholeFile.read(path, limit: 2) }
    #expect(throws: FileError(EISDIR, "read \(directory.path)")) { try WholeFile.read(directory.path, limit: 2) }
    #expect(FileError(ENOSPC, "write /x").description == "write /x: No space left on device")
  }

  /// What a crash left, or somebody put there, is neither written through nor made the file with the rights it had.
  @Test func aLeftoverIsNeitherFollowedNorKept() throws {
    let directory = try TemporaryDirectory()
    let path = directory.file("a")
    try WholeFile.replace(directory.file("victim"), with: [9])
    symlink(directory.file("victim"), path + ".new")
    try WholeFile.replace(path, with: [1])
    #expect(try WholeFile.read(directory.file("victim"), limit: 10) == [9])

    try WholeFile.replace(path + ".new", with: [8, 8, 8, 8], mode: 0o644)
    chmod(path + ".new", 0o666)
    try WholeFile.replace(path, with: [2])
    #expect(try WholeFile.read(path, limit: 10) == [2])
    #expect(Self.mode(path) == 0o600)
  }

  @Test func whatFailsLeavesTheOldContentAndNothingElse() throws {
    let directory = try TemporaryDirectory()
    let path = directory.file("a")
    try WholeFile.replace(path, with: [1])
    // No file takes the name of a folder.
    mkdir(directory.file("folder"), 0o700)
    try WholeFile.replace(directory.file("folder/inside"), with: [])
    #expect(throws: FileError(EISDIR, "write \(directory.file("folder"))")) {
      try WholeFile.replace(directory.file("folder"), with: [2])
    }
    #expect(!Self.exists(directory.file("folder.new")))
    // Nor is one that stands in the way taken for a leftover.
    mkdir(path + ".new", 0o700)
    #expect(throws: FileError(EISDIR, "remove \(path).new")) { try WholeFile.replace(path, with: [2]) }
    rmdir(path + ".new")
    #expect(throws: FileError(ENOENT, "write \(directory.file("absent/a.new"))")) {
      try WholeFile.replace(directory.file("absent/a"), with: [2])
    }
    // A process that may write no more bytes, as on a full disk.
    #expect(throws: FileError(EFBIG, "write \(path)")) {
      try Self.withFileLimit(1000) { try WholeFile.replace(path, with: [UInt8](repeating: 3, count: 2000)) }
    }
    #expect(!Self.exists(path + ".new"))
    #expect(try WholeFile.read(path, limit: 10) == [1])
  }

  private static func withFileLimit(_ bytes: rlim_t, _ body: () throws -> Void) throws {
    var former = rlimit()
    getrlimit(__rlimit_resource_t(RLIMIT_FSIZE.rawValue), &former)
    var limit = former
    limit.rlim_cur = bytes
    signal(SIGXFSZ, SIG_IGN)
    setrlimit(__rlimit_resource_t(RLIMIT_FSIZE.rawValue), &limit)
    defer {
      setrlimit(__rlimit_resource_t(RLIMIT_FSIZE.rawValue), &former)
      signal(SIGXFSZ, SIG_DFL)
    }
    try body()
  }

  /// Readers see one content or the other, whole, at any moment.
  @Test func readersSeeOneContentOrTheOther() async throws {
    let directory = try TemporaryDirectory()
    let path = directory.file("a")
    let contents = [[UInt8](repeating: 1, count: 50_000), [UInt8](repeating: 2, count: 70_000)]
    try WholeFile.replace(path, with: contents[0])
    try await withThrowingTaskGroup(of: Void.self) { group in
      group.addTask {
        for round in 0..<500 { try WholeFile.replace(path, with: contents[round % 2], isDurable: round % 100 == 0) }
      }
      group.addTask {
        for _ in 0..<500 {
          let content = try WholeFile.read(path, limit: 1 << 20)
          #expect(content == contents[0] || content == contents[1])
        }
      }
      try await group.waitForAll()
    }
  }
}
