import Dispatch
import Synchronization

#if canImport(Glibc)
  import Glibc
#elseif canImport(Musl)
  import Musl
#endif

/// Calls back when something in a directory changes. What changed is read from the directory itself.
final class DirectoryWatcher: Sendable {
  private let descriptor: CInt
  private let onChange: @Sendable () -> Void
  private let isArmed = Mutex(false)
  private let path: String

  /// SAFETY: libdispatch's objects may be used from any thread; the overlay does not say so in types.
  private struct Source: @unchecked Sendable {
    let source: any DispatchSourceRead
  }
  private let source: Source

  init(path: String, onChange: @escaping @Sendable () -> Void) throws {
    self.path = path
    self.onChange = onChange
    let descriptor = inotify_init1(CInt(IN_CLOEXEC) | CInt(IN_NONBLOCK))
    guard descriptor >= 0 else { throw TextFile.failure("watch the directory \(path)", errno) }
    self.descriptor = descriptor
    source = Source(source: DispatchSource.makeReadSource(fileDescriptor: descriptor, queue: .global()))
    source.source.setEventHandler { [weak self] in self?.readable() }
    source.source.setCancelHandler { close(descriptor) }
    source.source.resume()
    arm()
  }

  deinit { source.source.cancel() }

  /// Watches the directory again after it was replaced; does nothing while the watch holds.
  func arm() {
    isArmed.withLock { isArmed in
      guard !isArmed else { return }
      let mask =
        UInt32(IN_CREATE) | UInt32(IN_DELETE) | UInt32(IN_MOVED_TO) | UInt32(IN_MOVED_FROM) | UInt32(IN_CLOSE_WRITE)
        | UInt32(IN_DELETE_SELF) | UInt32(IN_MOVE_SELF)
      isArmed = inotify_add_watch(descriptor, path, mask) >= 0
    }
  }

  private func readable() {
    var buffer = [UInt8](repeating: 0, count: 16 << 10)
    while true {
      let count = buffer.withUnsafeMutableBytes { read(descriptor, $0.baseAddress, $0.count) }
      guard count > 0 else { break }
      buffer.withUnsafeBytes { bytes in
        var offset = 0
        while offset + MemoryLayout<inotify_event>.size <= count {
          let event = bytes.loadUnaligned(fromByteOffset: offset, as: inotify_event.self)
          if event.mask & (UInt32(IN_IGNORED) | UInt32(IN_DELETE_SELF) | UInt32(IN_MOVE_SELF)) != 0 {
            isArmed.withLock { $0 = false }
          }
          offset += MemoryLayout<inotify_event>.size + Int(event.len)
        }
      }
    }
    onChange()
  }
}
