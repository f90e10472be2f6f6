import Glibc

/// Memory that lasts as long as a connection, straight from the system: it takes no more than what was touched of it,
/// and all of it is given back at once.
///
/// From the heap it would not be: pieces on page boundaries that come and go with thousands of connections leave gaps
/// that fit nobody, and the process grows with each crowd.
///
/// SAFETY: the range belongs to who allocated it, until `deallocate` with the same length.
enum PageMemory {
  /// Zeros, on a page boundary; nil where the system has no memory: the connection that wants it is refused.
  static func allocate(_ length: Int) -> UnsafeMutableRawPointer? {
    let flags = CInt(MAP_PRIVATE | MAP_ANONYMOUS)
    let memory = unsafe mmap(nil, length, PROT_READ | PROT_WRITE, flags, -1, 0)
    return unsafe memory == MAP_FAILED ? nil : memory
  }

  static func deallocate(_ memory: UnsafeMutableRawPointer, _ length: Int) { unsafe munmap(memory, length) }
}
