import CLinux
import Glibc

/// A chain of descriptors, translated: readable pieces first, then writable ones.
@unsafe
struct Chain {
  var readableCount = 0
  var writableCount = 0
  var readableLength: UInt64 = 0
  var writableLength: UInt64 = 0
}

/// Follows the chain that starts at `head` and puts its pieces into `vectors`, which has room for `capacity`.
///
/// Nil where the chain breaks a rule of virtio 1.2, section 2.7.5: an index or an address out of range, a loop, a
/// readable piece after a writable one, an indirect table in an indirect table or of a length that is no multiple of
/// 16, or more pieces than there is room for. Everything it reads can change under its hands, so each descriptor is
/// read once.
///
/// SAFETY: `descriptors` has `size` entries, an indirect table the number that its checked length holds, and an index
/// is compared with that before each read; `vectors` is written below `capacity` only.
func walkChain(
  descriptors: UnsafeMutableRawPointer, size: UInt16, head: UInt16, memory: borrowing GuestMemory,
  vectors: UnsafeMutablePointer<iovec>, capacity: Int
) -> Chain? {
  var chain = unsafe Chain()
  var table = unsafe descriptors
  var tableSize = UInt32(size)
  var index = UInt32(head)
  // A chain longer than its table has a loop.
  var budget = UInt32(size)
  var isIndirect = false
  while true {
    guard index < tableSize, budget > 0 else { return nil }
    budget -= 1
    let descriptor = unsafe clinux_load_descriptor(table + Int(index) * 16)
    if Int32(descriptor.flags) & VRING_DESC_F_INDIRECT != 0 {
      // A table stands alone: not inside another one, and with no successor.
      guard !isIndirect, Int32(descriptor.flags) & VRING_DESC_F_NEXT == 0, descriptor.length > 0,
        descriptor.length % 16 == 0, unsafe descriptor.length / 16 <= UInt32(VirtQueue.maximumSize),
        let pointer = unsafe memory.translateWhole(descriptor.address, UInt64(descriptor.length)),
        UInt(bitPattern: pointer) % 8 == 0
      else { return nil }
      isIndirect = true
      unsafe table = unsafe pointer
      tableSize = descriptor.length / 16
      budget = tableSize
      index = 0
      continue
    }
    let isWritable = Int32(descriptor.flags) & VRING_DESC_F_WRITE != 0
    guard unsafe isWritable || chain.writableCount == 0, descriptor.length > 0 else { return nil }
    var address = descriptor.address
    var left = UInt64(descriptor.length)
    guard !address.addingReportingOverflow(left).overflow else { return nil }
    while left > 0 {
      let count = unsafe chain.readableCount + chain.writableCount
      guard count < capacity, let part = unsafe memory.translate(address, left) else { return nil }
      unsafe vectors[count] = unsafe iovec(iov_base: part.pointer, iov_len: Int(part.length))
      if isWritable { unsafe chain.writableCount += 1 } else { unsafe chain.readableCount += 1 }
      unsafe address += part.length
      unsafe left -= part.length
    }
    if isWritable {
      unsafe chain.writableLength += UInt64(descriptor.length)
    } else {
      unsafe chain.readableLength += UInt64(descriptor.length)
    }
    guard Int32(descriptor.flags) & VRING_DESC_F_NEXT != 0 else { return unsafe chain }
    index = UInt32(descriptor.next)
  }
}
