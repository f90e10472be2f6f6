import CLinux
import Dispatch
import Glibc

/// A thread of the system, running one closure.
final class ThreadBody: Sendable {
  private let name: String
  private let body: @Sendable () -> Void

  init(name: String, _ body: @escaping @Sendable () -> Void) {
    self.name = name
    self.body = body
  }

  /// Starts the thread, detached; false where the system has none to give.
  func start() -> Bool {
    var thread = pthread_t()
    let argument = unsafe Unmanaged.passRetained(self)
    // SAFETY: the thread takes over the reference that is passed as its argument.
    let result = unsafe pthread_create(
      &thread, nil,
      { argument in
        guard let argument = unsafe argument else { return nil }
        let thread = unsafe Unmanaged<ThreadBody>.fromOpaque(argument).takeRetainedValue()
        unsafe clinux_name_thread(thread.name)
        thread.body()
        return nil
      }, unsafe argument.toOpaque())
    guard result == 0 else {
      unsafe argument.release()
      return false
    }
    pthread_detach(thread)
    return true
  }
}

/// A gate that opens once.
final class Latch: Sendable {
  private let semaphore = DispatchSemaphore(value: 0)
  func open() { semaphore.signal() }
  func wait() {
    semaphore.wait()
    semaphore.signal()
  }
}
