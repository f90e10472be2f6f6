import Glibc
import JSON

/// The directory with the volumes, on a file system that can clone a file without copying it.
struct StoragePool: Sendable {
  let directory: CloudDirectory
  let settings: CloudSettings

  /// Where the volumes are.
  var path: String { settings.pool ?? directory.poolMount }

  /// Makes the pool ready and says how.
  func open() async throws -> String {
    if let pool = settings.pool {
      try Files.makeDirectory(pool)
      guard try await Self.canReflink(pool) else {
        throw LocalCloudError(
          .missingRequirement, operation: "use \(pool) as the pool",
          "its file system cannot clone files; use XFS made with -m reflink=1 or btrfs, or leave --pool away")
      }
      try Files.makeDirectory("\(pool)/volumes", mode: 0o700)
      return "the file system of \(pool)"
    }
    try Files.makeDirectory(directory.poolMount, mode: 0o700)
    if try MountTable.read().contains(where: { $0.mountPoint == directory.poolMount }) {
      guard Files.exists(directory.poolImage) else {
        throw LocalCloudError(
          .conflict, operation: "use the pool",
          "\(directory.poolMount) is still mounted but its file \(directory.poolImage) is gone; run 'ycloud down --purge'"
        )
      }
      try Files.makeDirectory("\(directory.poolMount)/volumes", mode: 0o700)
      return "mounted already"
    }
    if !Files.exists(directory.poolImage), try await Self.canReflink(directory.poolMount) {
      try Files.makeDirectory("\(directory.poolMount)/volumes", mode: 0o700)
      return "the file system of \(directory.path)"
    }
    let isNew = !Files.exists(directory.poolImage)
    if isNew { try await makeImage() }
    let device = try await attach()
    // Online discard: what is deleted in the pool leaves the sparse file too.
    try await Command.run("mount", "-t", "xfs", "-o", "noatime,discard", device, directory.poolMount)
    try Files.makeDirectory("\(directory.poolMount)/volumes", mode: 0o700)
    return isNew ? "XFS with reflink, \(settings.poolGiB) GiB sparse" : "XFS with reflink"
  }

  /// Unmounts and detaches; nothing happens where nothing is left. The data stay in the file.
  static func close(_ directory: CloudDirectory) async throws {
    // More than one mount when somebody else mounted over it.
    for _ in try MountTable.read().filter({ $0.mountPoint == directory.poolMount }) {
      try await unmount(directory.poolMount)
    }
    for device in try await loopDevices(of: directory.poolImage) {
      try await Command.run("losetup", "-d", device)
    }
  }

  /// The kernel gives up a killed process's io_uring, and the files in it, some moments after the process.
  private static func unmount(_ path: String) async throws {
    let deadline = ContinuousClock.now + .seconds(10)
    while true {
      do {
        try await Command.run("umount", path)
        return
      } catch let error as LocalCloudError {
        guard error.message.contains("busy"), ContinuousClock.now < deadline else { throw error }
        try await Task.sleep(for: .milliseconds(50))
      }
    }
  }

  private func makeImage() async throws {
    // Made under another name: a file with the right name is a finished file system.
    let unfinished = "\(directory.poolImage).new"
    try Files.remove(unfinished)
    let descriptor = Glibc.open(unfinished, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0o600)
    guard descriptor >= 0 else { throw Files.failure("create \(unfinished)") }
    let hasSize = ftruncate(descriptor, off_t(settings.poolGiB) << 30) == 0
    let error = Files.failure("size \(unfinished)")
    Glibc.close(descriptor)
    guard hasSize else { throw error }
    try await Command.run("mkfs.xfs", "-q", "-m", "reflink=1,crc=1", "-L", "ycloud-pool", unfinished)
    guard rename(unfinished, directory.poolImage) == 0 else { throw Files.failure("rename \(unfinished)") }
  }

  /// The loop device of the image, an existing one if there is.
  private func attach() async throws -> String {
    if let device = try await Self.loopDevices(of: directory.poolImage).first { return device }
    let arguments = ["--show", "--find", directory.poolImage]
    let output: String
    do {
      // Direct I/O keeps the pool's data from being cached twice; not every file system below has it.
      output = try await Command.run("losetup", ["--direct-io=on"] + arguments)
    } catch is LocalCloudError {
      output = try await Command.run("losetup", arguments)
    }
    return String(output.prefix { $0 != "\n" })
  }

  /// The loop devices of a file, also of one that was removed while a device had it.
  private static func loopDevices(of image: String) async throws -> [String] {
    let table = try JSONValue.parse(
      try await Command.run("losetup", "--json", "--list", "--output", "NAME,BACK-FILE").orEmptyObject)
    return (table["loopdevices"]?.arrayValue ?? []).compactMap { device in
      guard let file = device["back-file"]?.stringValue, file == image || file == "\(image) (deleted)" else {
        return nil
      }
      return device["name"]?.stringValue
    }
  }

  /// Tries it: no property of a file system says so reliably.
  static func canReflink(_ path: String) async throws -> Bool {
    let source = "\(path)/.reflink-\(getpid())"
    let target = "\(source)-clone"
    defer {
      unlink(source)
      unlink(target)
    }
    try Files.write(source, String(repeating: "x", count: 4096), mode: 0o600)
    do {
      try await Command.run("cp", "--reflink=always", source, target)
      return true
    } catch let error as LocalCloudError where error.code == .commandFailed {
      return false
    }
  }
}

extension String {
  /// losetup prints nothing at all instead of an empty list.
  fileprivate var orEmptyObject: String { allSatisfy(\.isWhitespace) ? "{}" : self }
}

/// What is mounted where (`/proc/self/mountinfo`).
package struct MountTable: Sendable {
  package struct Entry: Sendable, Hashable {
    package var mountPoint: String
    package var fileSystem: String
    package var source: String
  }

  static func read() throws -> [Entry] {
    parse(try Files.read("/proc/self/mountinfo") ?? "")
  }

  /// Parses proc(5)'s format; lines that it does not describe are left out.
  package static func parse(_ text: String) -> [Entry] {
    text.split(separator: "\n").compactMap { line in
      let fields = line.split(separator: " ", omittingEmptySubsequences: false)
      guard let dash = fields.firstIndex(of: "-"), dash >= 6, fields.count >= dash + 3 else { return nil }
      return Entry(
        mountPoint: unescape(fields[4]), fileSystem: String(fields[dash + 1]), source: unescape(fields[dash + 2]))
    }
  }

  /// Space, tab, line feed and backslash are written as three octal digits.
  private static func unescape(_ text: Substring) -> String {
    var bytes: [UInt8] = []
    let source = Array(text.utf8)
    var index = 0
    while index < source.count {
      if source[index] == 0x5c, index + 3 < source.count,
        let byte = UInt8(String(decoding: source[(index + 1)...(index + 3)], as: UTF8.self), radix: 8)
      {
        bytes.append(byte)
        index += 4
      } else {
        bytes.append(source[index])
        index += 1
      }
    }
    return String(decoding: bytes, as: UTF8.self)
  }
}
