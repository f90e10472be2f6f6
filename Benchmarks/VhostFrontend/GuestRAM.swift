import CLinux
import Glibc

/// Memory that a front end shares with its target: a memfd, mapped here. It outlives connections, as a guest does.
public final class GuestRAM {
  public let fd: CInt
  public let length: Int
  public let base: UnsafeMutableRawPointer
  /// Where the memory starts in the guest's physical addresses; not zero, so that a mix-up shows.
  public static let guestStart: UInt64 = 0x4000_0000

  public init(length: Int) throws {
    self.length = length
    fd = clinux_memfd_create("guest-ram", 0)
    guard fd >= 0, ftruncate(fd, off_t(length)) == 0,
      let mapping = mmap(nil, length, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0), mapping != MAP_FAILED
    else { throw FrontendError("cannot make guest memory: errno \(errno)") }
    base = mapping
  }

  deinit {
    munmap(base, length)
    close(fd)
  }

  /// The guest's physical address of an offset.
  public func guestAddress(_ offset: Int) -> UInt64 { GuestRAM.guestStart + UInt64(offset) }
  /// This process's address of an offset; rings are announced in these.
  public func userAddress(_ offset: Int) -> UInt64 { UInt64(UInt(bitPattern: base + offset)) }
}
