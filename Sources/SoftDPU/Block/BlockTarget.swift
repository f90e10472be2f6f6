/// What the hot path needs to know of a file: a plain value at a fixed address, changed by its reactor's thread only.
///
/// SAFETY: the `FileDevice` that owns the descriptors outlives every session that holds this value's address.
@unsafe
struct BlockTarget {
  /// Opened with O_DIRECT, or -1 where the file has no direct I/O.
  var directFD: CInt
  /// Opened without it; takes every request whose shape direct I/O refuses.
  var bufferedFD: CInt
  /// Size in bytes, a multiple of 512.
  var capacity: UInt64
  /// Direct I/O needs memory, and offsets and lengths, at multiples of these (a mask: the alignment less one).
  var memoryMask: UInt
  var offsetMask: UInt64
  /// The file lives in memory, so that its I/O is done at once, on the reactor's thread.
  var isInline: Bool
  var isReadOnly: Bool
  /// Discard and write-zeroes may punch holes.
  var canUnmap: Bool
  /// What GET_ID answers: 20 bytes, padded with zeros.
  var identity: UnsafeMutableRawPointer
}
