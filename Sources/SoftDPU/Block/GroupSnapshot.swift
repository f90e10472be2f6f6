import CLinux
import Dispatch
import Glibc
import Synchronization

/// The content of several files at one moment, kept as reflinks in a folder of its own.
///
/// Changes of all the devices are kept back together; when those under way are done, each file is cloned, and the
/// changes go on. So what a guest wrote after another write had been answered is never in the snapshot without it,
/// whichever disks the two went to. The folder gets its name when everything in it is durable: it is there whole or not
/// at all.
///
/// SAFETY, for every `unsafe` here: paths and structures live for the length of the call; descriptors of devices are
/// open for as long as `items` keeps the devices.
struct GroupSnapshot: Sendable {
  struct Item: Sendable {
    let device: FileDevice
    /// The name of its clone in the folder.
    let file: String
  }

  struct Outcome: Sendable {
    /// For how long changes were kept back, in microseconds.
    let pause: UInt64
    /// When changes went on, in microseconds since 1970.
    let takenAt: Int64
    /// Lengths of the clones in bytes, in the order of the items.
    let sizes: [Int64]
  }

  /// An absolute path, of which the last part is to be made.
  let folder: String
  let items: [Item]
  /// The most for which changes are kept back, in nanoseconds.
  let limit: UInt64

  /// Snapshots are taken one after the other.
  static let work = DispatchQueue(label: "GroupSnapshot.work")
  private static let numbers = Atomic<UInt64>(0)
  /// A file is cloned in parts of this length, so that a clone that takes too long is noticed. A multiple of any block.
  private static let part: UInt64 = 4 << 30
  /// ioctl_ficlonerange(2): _IOW(0x94, 13, struct file_clone_range).
  private static let ficlonerange: UInt = 0x4020_940D

  private var parts: (parent: String, name: String) {
    let slash = folder.lastIndex(of: "/") ?? folder.startIndex
    return (String(folder[..<slash]), String(folder[folder.index(after: slash)...]))
  }

  private var operation: String { "take the snapshot \(folder)" }

  /// Takes it. EEXIST where the folder is there already, ETIMEDOUT where changes would have been kept back for longer
  /// than the limit, EBUSY where another snapshot of a device is being taken. Then nothing is left of it.
  func take() throws(SoftDPUError) -> Outcome {
    let (parent, name) = parts
    let staging = "\(parent)/.\(name).partial"
    guard unsafe access(folder, F_OK) != 0 else { throw .system(EEXIST, operation) }
    guard unsafe mkdir(parent, 0o700) == 0 || errno == EEXIST else { throw .system(errno, operation) }
    // Of a process that died in the middle.
    GroupSnapshot.remove(staging)
    guard unsafe mkdir(staging, 0o700) == 0 else { throw .system(errno, operation) }
    do throws(SoftDPUError) {
      let outcome = try capture(in: staging)
      guard unsafe rename(staging, folder) == 0 else { throw .system(errno, operation) }
      try DurableFile.syncDirectory(parent)
      return outcome
    } catch {
      GroupSnapshot.remove(staging)
      throw error
    }
  }

  private func capture(in staging: String) throws(SoftDPUError) -> Outcome {
    var clones: [CInt] = []
    defer { for clone in clones { close(clone) } }
    for item in items {
      let fd = unsafe open("\(staging)/\(item.file)", O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0o600)
      guard fd >= 0 else { throw .system(errno, operation) }
      clones.append(fd)
      // What the page cache has is written back before the clone; better now than while others wait.
      _ = unsafe fdatasync(item.device.target.pointee.bufferedFD)
    }
    let outcome = try hold(clones)
    for clone in clones {
      guard fchmod(clone, 0o400) == 0, fsync(clone) == 0 else { throw .system(errno, operation) }
    }
    try DurableFile.syncDirectory(staging)
    return outcome
  }

  /// Keeps changes back, clones, lets them go on.
  private func hold(_ clones: [CInt]) throws(SoftDPUError) -> Outcome {
    let number = GroupSnapshot.numbers.add(1, ordering: .relaxed).newValue
    let began = clinux_monotonic_nanoseconds()
    let deadline = began &+ limit
    let group = DispatchGroup()
    let settled = Settled()
    for item in items {
      group.enter()
      item.device.holdChanges(number, until: deadline) { isDone in
        if !isDone { settled.fail() }
        group.leave()
      }
    }
    var failure: SoftDPUError?
    if group.wait(timeout: .now() + .nanoseconds(Int(clamping: limit))) == .timedOut {
      failure = .system(ETIMEDOUT, operation)
    } else if settled.hasFailed {
      failure = clinux_monotonic_nanoseconds() >= deadline ? .system(ETIMEDOUT, operation) : .system(EBUSY, operation)
    } else {
      do throws(SoftDPUError) {
        for (item, clone) in zip(items, clones) { try copy(item, to: clone, before: deadline) }
      } catch {
        failure = error
      }
    }
    var wasHeld = true
    for item in items where !item.device.releaseChanges(number) { wasHeld = false }
    let ended = clinux_monotonic_nanoseconds()
    if let failure { throw failure }
    // One that ended by itself let writes through, which the clones may or may not have.
    guard wasHeld else { throw .system(ETIMEDOUT, operation) }
    var time = timespec()
    unsafe clock_gettime(CLOCK_REALTIME, &time)
    return Outcome(
      pause: (ended &- began) / 1000, takenAt: Int64(time.tv_sec) * 1_000_000 + Int64(time.tv_nsec) / 1000,
      sizes: items.map { Int64(clamping: $0.device.size) })
  }

  private func copy(_ item: Item, to clone: CInt, before deadline: UInt64) throws(SoftDPUError) {
    let source = unsafe item.device.target.pointee.bufferedFD
    var status = stat()
    guard unsafe fstat(source, &status) == 0 else { throw .system(errno, operation) }
    let size = UInt64(max(0, status.st_size))
    var offset: UInt64 = 0
    while offset < size {
      guard clinux_monotonic_nanoseconds() < deadline else { throw .system(ETIMEDOUT, operation) }
      let isLast = size - offset <= GroupSnapshot.part
      // struct file_clone_range: the source, where in it, how much (0 is all that is left), where to.
      var range: (Int64, UInt64, UInt64, UInt64) = (Int64(source), offset, isLast ? 0 : GroupSnapshot.part, offset)
      let result = unsafe withUnsafeMutablePointer(to: &range) { unsafe ioctl(clone, GroupSnapshot.ficlonerange, $0) }
      guard result == 0 else { throw .system(errno, operation) }
      offset += GroupSnapshot.part
    }
  }

  /// Removes a folder of files.
  private static func remove(_ path: String) {
    guard let directory = unsafe opendir(path) else { return }
    while let entry = unsafe readdir(directory) {
      let name = unsafe withUnsafeBytes(of: entry.pointee.d_name) {
        unsafe String(decoding: $0.prefix { $0 != 0 }, as: UTF8.self)
      }
      if name != ".", name != ".." { unsafe unlink("\(path)/\(name)") }
    }
    unsafe closedir(directory)
    unsafe rmdir(path)
  }
}

/// Whether every device was held until its changes were done.
private final class Settled: Sendable {
  private let failed = Atomic<Bool>(false)
  var hasFailed: Bool { failed.load(ordering: .acquiring) }
  func fail() { failed.store(true, ordering: .releasing) }
}
