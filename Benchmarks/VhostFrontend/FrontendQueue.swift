import CLinux
import Glibc

/// The driver's side of one split virtqueue, with a fixed chain of three descriptors for each of its slots.
public final class FrontendQueue {
  public let index: Int
  public let size: UInt16
  /// How many requests can be in flight: slots.
  public let slots: Int
  /// Bytes of data that one slot has.
  public let slotLength: Int
  public let kickFD: CInt
  public let callFD: CInt
  public let ram: GuestRAM
  public var hasEventIndex = true

  let descriptorOffset: Int
  let availableOffset: Int
  let usedOffset: Int
  private let headerOffset: Int
  private let statusOffset: Int
  public let dataOffset: Int

  public private(set) var availableIndex: UInt16 = 0
  private var kickedIndex: UInt16 = 0
  public private(set) var lastUsed: UInt16 = 0

  static func length(size: UInt16, slots: Int, slotLength: Int) -> Int {
    let rings = align(16 * Int(size)) + align(6 + 2 * Int(size)) + align(6 + 8 * Int(size))
    return rings + align(16 * slots) + align(slots) + align(slots * slotLength)
  }

  private static func align(_ length: Int) -> Int { (length + 4095) & ~4095 }

  init(index: Int, size: UInt16, slotLength: Int, ram: GuestRAM, offset: Int) throws {
    self.index = index
    self.size = size
    self.slotLength = slotLength
    self.ram = ram
    slots = Int(size) / 3
    descriptorOffset = offset
    availableOffset = descriptorOffset + FrontendQueue.align(16 * Int(size))
    usedOffset = availableOffset + FrontendQueue.align(6 + 2 * Int(size))
    headerOffset = usedOffset + FrontendQueue.align(6 + 8 * Int(size))
    statusOffset = headerOffset + FrontendQueue.align(16 * slots)
    dataOffset = statusOffset + FrontendQueue.align(slots)
    kickFD = eventfd(0, CInt(EFD_CLOEXEC) | CInt(EFD_NONBLOCK))
    callFD = eventfd(0, CInt(EFD_CLOEXEC) | CInt(EFD_NONBLOCK))
    guard kickFD >= 0, callFD >= 0 else { throw FrontendError("cannot make eventfds") }
  }

  deinit {
    close(kickFD)
    close(callFD)
  }

  /// The data of a slot.
  public func data(_ slot: Int) -> UnsafeMutableRawBufferPointer {
    UnsafeMutableRawBufferPointer(start: ram.base + dataOffset + slot * slotLength, count: slotLength)
  }

  /// The status byte of a slot; 0xFF until the target wrote it.
  public func status(_ slot: Int) -> UInt8 { (ram.base + statusOffset + slot).load(as: UInt8.self) }

  /// Writes a descriptor as it is, sound or not.
  public func writeDescriptor(_ index: Int, address: UInt64, length: UInt32, flags: UInt16, next: UInt16) {
    let entry = ram.base + descriptorOffset + index * 16
    entry.storeBytes(of: address, as: UInt64.self)
    entry.storeBytes(of: length, toByteOffset: 8, as: UInt32.self)
    entry.storeBytes(of: flags, toByteOffset: 12, as: UInt16.self)
    entry.storeBytes(of: next, toByteOffset: 14, as: UInt16.self)
  }

  /// Makes a chain available. The target sees it at once, but is told by `kick`.
  public func makeAvailable(_ head: UInt16) {
    let ring = ram.base + availableOffset
    ring.storeBytes(of: head, toByteOffset: 4 + 2 * Int(availableIndex % size), as: UInt16.self)
    availableIndex &+= 1
    clinux_store_release_u16(ring + 2, availableIndex)
  }

  /// Queues a request in a slot. `writable`: the target writes the data.
  public func submit(slot: Int, type: UInt32, sector: UInt64, length: Int, writable: Bool) {
    let header = ram.base + headerOffset + slot * 16
    header.storeBytes(of: type, as: UInt32.self)
    header.storeBytes(of: 0, toByteOffset: 4, as: UInt32.self)
    header.storeBytes(of: sector, toByteOffset: 8, as: UInt64.self)
    (ram.base + statusOffset + slot).storeBytes(of: 0xFF, as: UInt8.self)
    let first = slot * 3
    let statusIndex = length > 0 ? first + 2 : first + 1
    writeDescriptor(
      first, address: ram.guestAddress(headerOffset + slot * 16), length: 16, flags: 1, next: UInt16(first + 1))
    if length > 0 {
      writeDescriptor(
        first + 1, address: ram.guestAddress(dataOffset + slot * slotLength), length: UInt32(length),
        flags: writable ? 3 : 1, next: UInt16(first + 2))
    }
    writeDescriptor(statusIndex, address: ram.guestAddress(statusOffset + slot), length: 1, flags: 2, next: 0)
    makeAvailable(UInt16(first))
  }

  /// Rings the target's bell where it asked for it.
  public func kick() {
    clinux_full_fence()
    let used = ram.base + usedOffset
    let old = kickedIndex
    kickedIndex = availableIndex
    if hasEventIndex {
      let event = clinux_load_relaxed_u16(used + (4 + 8 * Int(size)))
      guard availableIndex &- event &- 1 < availableIndex &- old else { return }
    } else if clinux_load_relaxed_u16(used) & 1 != 0 {
      return
    }
    ringBell()
  }

  /// Rings the target's bell, asked for or not.
  public func ringBell() {
    var one: UInt64 = 1
    _ = write(kickFD, &one, 8)
  }

  /// Takes what the target gave back: the head of each chain, and the length it wrote.
  public func reap(_ body: (_ head: UInt32, _ written: UInt32) -> Void) {
    let used = ram.base + usedOffset
    while clinux_load_acquire_u16(used + 2) != lastUsed {
      let entry = used + (4 + 8 * Int(lastUsed % size))
      body(entry.load(as: UInt32.self), entry.load(fromByteOffset: 4, as: UInt32.self))
      lastUsed &+= 1
    }
  }

  /// Asks for a bell at the next completion, and waits for it. False where none came in time.
  public func wait(milliseconds: CInt) -> Bool {
    armBell()
    if clinux_load_acquire_u16(ram.base + usedOffset + 2) != lastUsed { return true }
    var entry = pollfd(fd: callFD, events: Int16(POLLIN), revents: 0)
    let count = poll(&entry, 1, milliseconds)
    var value: UInt64 = 0
    _ = read(callFD, &value, 8)
    return count > 0 || clinux_load_acquire_u16(ram.base + usedOffset + 2) != lastUsed
  }

  /// Asks for a bell at the next completion.
  public func armBell() {
    clinux_store_release_u16(ram.base + availableOffset + (4 + 2 * Int(size)), lastUsed)
    clinux_full_fence()
  }

  /// Whether the target gave something back that was not taken yet.
  public var hasCompletions: Bool { clinux_load_acquire_u16(ram.base + usedOffset + 2) != lastUsed }

  /// Puts heads into the used ring as a target does, and takes them: what a target that died had answered.
  public func pretendUsed(_ heads: [UInt32]) {
    let used = ram.base + usedOffset
    for head in heads {
      (used + (4 + 8 * Int(lastUsed % size))).storeBytes(of: head, as: UInt32.self)
      lastUsed &+= 1
    }
    clinux_store_release_u16(used + 2, lastUsed)
  }

  /// Starts afresh, as a driver does after a reboot.
  public func reset() {
    memset(ram.base + availableOffset, 0, 6 + 2 * Int(size))
    memset(ram.base + usedOffset, 0, 6 + 8 * Int(size))
    availableIndex = 0
    kickedIndex = 0
    lastUsed = 0
  }

  /// The target's index of the used ring.
  public var usedIndex: UInt16 { clinux_load_acquire_u16(ram.base + usedOffset + 2) }
}
