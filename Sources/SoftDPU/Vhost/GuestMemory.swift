import CLinux
import Glibc

/// One piece of the front end's memory, mapped into this process.
@unsafe
struct GuestRegion {
  /// Where it starts in the guest's physical addresses.
  var guestStart: UInt64
  var length: UInt64
  /// Where it starts in the front end's own addresses; rings are given in these.
  var userStart: UInt64
  /// Where it starts here.
  var base: UnsafeMutableRawPointer
  /// What was mapped, from the file's start.
  var mapping: UnsafeMutableRawPointer
  var mappingLength: Int
}

/// What the front end says about a piece of its memory, before it is mapped.
package struct RegionDescription: Sendable, Hashable {
  package var guestStart: UInt64
  package var length: UInt64
  package var userStart: UInt64
  package var fileOffset: UInt64

  package init(guestStart: UInt64, length: UInt64, userStart: UInt64, fileOffset: UInt64) {
    self.guestStart = guestStart
    self.length = length
    self.userStart = userStart
    self.fileOffset = fileOffset
  }

  /// Whether no sum of its members overflows, and the piece is not empty.
  package var isSound: Bool {
    length > 0 && length <= 1 << 46 && fileOffset <= 1 << 46
      && !guestStart.addingReportingOverflow(length).overflow && !userStart.addingReportingOverflow(length).overflow
  }
}

/// The front end's memory: a bounded table of mapped pieces.
///
/// SAFETY: the table is owned by one session and touched by its reactor's thread only; pieces are unmapped only while
/// no request of the session is in the kernel's hands.
@unsafe
struct GuestMemory {
  /// What CONFIGURE_MEM_SLOTS offers.
  static let maximumRegions = 32

  let regions: UnsafeMutablePointer<GuestRegion>
  private(set) var count = 0

  init() {
    unsafe regions = unsafe UnsafeMutablePointer<GuestRegion>.allocate(capacity: GuestMemory.maximumRegions)
  }

  /// The piece of this process's memory where a guest's buffer starts, and how much of the buffer is contiguous there.
  @inline(__always)
  func translate(_ address: UInt64, _ length: UInt64) -> (pointer: UnsafeMutableRawPointer, length: UInt64)? {
    for index in unsafe 0..<count {
      let region = unsafe regions + index
      let offset = unsafe address &- region.pointee.guestStart
      if unsafe offset < region.pointee.length {
        return unsafe (region.pointee.base + Int(offset), min(length, region.pointee.length - offset))
      }
    }
    return nil
  }

  /// A guest's buffer that has to be contiguous.
  @inline(__always)
  func translateWhole(_ address: UInt64, _ length: UInt64) -> UnsafeMutableRawPointer? {
    guard let part = unsafe translate(address, length), unsafe part.length == length else { return nil }
    return unsafe part.pointer
  }

  /// A piece of memory given in the front end's own addresses.
  func translateUser(_ address: UInt64, _ length: UInt64) -> UnsafeMutableRawPointer? {
    for index in unsafe 0..<count {
      let region = unsafe regions[index]
      let offset = unsafe address &- region.userStart
      if unsafe offset < region.length, unsafe length <= region.length - offset {
        return unsafe region.base + Int(offset)
      }
    }
    return nil
  }

  /// Maps a piece. The descriptor stays the caller's.
  mutating func add(_ description: RegionDescription, fd: CInt) throws(SoftDPUError) {
    let operation = "map guest memory"
    guard unsafe count < GuestMemory.maximumRegions else {
      throw SoftDPUError(
        code: .invalid, operation: operation, message: unsafe "more than \(GuestMemory.maximumRegions) regions")
    }
    guard description.isSound else {
      throw SoftDPUError(code: .invalid, operation: operation, message: "a region's bounds are not sound")
    }
    for index in unsafe 0..<count {
      let other = unsafe regions[index]
      if unsafe description.guestStart < other.guestStart + other.length,
        unsafe other.guestStart < description.guestStart + description.length
      {
        throw SoftDPUError(code: .invalid, operation: operation, message: "two regions overlap")
      }
    }
    let end = description.fileOffset + description.length
    var status = stat()
    guard unsafe fstat(fd, &status) == 0 else { throw .system(errno, operation) }
    let pageSize = try SharedMemoryGuard.pageSize(fd, operation)
    // A mapping beyond the end of its file is a trap: the first touch would end this process.
    guard status.st_size >= 0, UInt64(status.st_size) >= end else {
      throw SoftDPUError(code: .invalid, operation: operation, message: "a region is longer than its file")
    }
    // From the file's start, because huge pages take only offsets of their own size.
    guard let mapping = unsafe mmap(nil, Int(end), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd, 0),
      unsafe mapping != MAP_FAILED
    else { throw .system(errno, operation) }
    guard unsafe SharedMemoryGuard.add(mapping, Int(end), pageSize: pageSize) else {
      unsafe munmap(mapping, Int(end))
      throw .system(ENOMEM, operation)
    }
    unsafe (regions + count).initialize(
      to: GuestRegion(
        guestStart: description.guestStart, length: description.length, userStart: description.userStart,
        base: mapping + Int(description.fileOffset), mapping: mapping, mappingLength: Int(end)))
    unsafe count += 1
  }

  /// Unmaps the piece with these addresses; false where there is none.
  mutating func remove(guestStart: UInt64, length: UInt64, userStart: UInt64) -> Bool {
    for index in unsafe 0..<count {
      let region = unsafe regions[index]
      guard unsafe region.guestStart == guestStart, unsafe region.length == length, unsafe region.userStart == userStart
      else { continue }
      unsafe unmap(region)
      unsafe regions[index] = unsafe regions[count - 1]
      unsafe count -= 1
      return true
    }
    return false
  }

  /// Unmaps everything.
  mutating func removeAll() {
    for index in unsafe 0..<count { unsafe unmap(regions[index]) }
    unsafe count = 0
  }

  mutating func destroy() {
    unsafe removeAll()
    unsafe regions.deallocate()
  }

  private func unmap(_ region: GuestRegion) {
    unsafe SharedMemoryGuard.remove(region.mapping, region.mappingLength)
    unsafe munmap(region.mapping, region.mappingLength)
  }
}

/// Keeps the process alive when a front end shortens a file that is mapped here.
///
/// A touch of a page behind the end of its file raises SIGBUS. The handler puts a private page of zeros there: the
/// front end hurts only itself.
enum SharedMemoryGuard {
  static func install() { clinux_guard_install() }

  /// The size of the pages of a file of memory. Other files are refused: a touch of theirs may wait for whoever
  /// serves them.
  static func pageSize(_ fd: CInt, _ operation: String) throws(SoftDPUError) -> Int {
    let size = clinux_memory_page_size(fd)
    guard size > 0 else {
      throw SoftDPUError(
        code: .invalid, operation: operation, message: "the memory is neither a memfd nor a file on tmpfs or hugetlbfs")
    }
    return size
  }

  /// False where the table is full.
  static func add(_ start: UnsafeMutableRawPointer, _ length: Int, pageSize: Int) -> Bool {
    unsafe clinux_guard_add(start, length, pageSize) == 0
  }

  static func remove(_ start: UnsafeMutableRawPointer, _ length: Int) { unsafe clinux_guard_remove(start, length) }
}
