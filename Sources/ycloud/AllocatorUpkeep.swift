import Dispatch

#if canImport(Glibc)
  import Glibc
#elseif canImport(Musl)
  import Musl
#endif

/// Keeps the memory of a process that works in bursts near to what it uses.
///
/// glibc gives each thread a heap of its own and keeps what is freed between things that stay: after a thousand hosts had
/// been enrolled, two thirds of bm-controller's heaps were free. One heap is enough for a few threads, and after work its
/// free pages go back to the kernel.
final class AllocatorUpkeep {
  /// How often it looks whether there was work.
  private static let interval = DispatchTimeInterval.seconds(30)
  /// So much processor time is work.
  private static let workSeconds = 0.5
  /// `M_ARENA_MAX` of mallopt(3).
  private static let arenaMax: Int32 = -8

  private typealias Trim = @convention(c) (Int) -> Int32
  private typealias Option = @convention(c) (Int32, Int32) -> Int32

  private let timer: (any DispatchSourceTimer)?

  /// Begins. Other C libraries than glibc have neither the trouble nor the functions: there nothing is done.
  init() {
    if let mallopt: Option = Self.function("mallopt") { _ = mallopt(Self.arenaMax, 1) }
    guard let trim: Trim = Self.function("malloc_trim") else {
      timer = nil
      return
    }
    let timer = DispatchSource.makeTimerSource(queue: DispatchQueue(label: "allocator", qos: .utility))
    timer.schedule(deadline: .now() + Self.interval, repeating: Self.interval, leeway: .seconds(5))
    var worked = Self.processorSeconds()
    timer.setEventHandler {
      let now = Self.processorSeconds()
      guard now - worked >= Self.workSeconds else { return }
      _ = trim(0)
      worked = Self.processorSeconds()
    }
    timer.resume()
    self.timer = timer
  }

  deinit { timer?.cancel() }

  private static func function<F>(_ name: String) -> F? {
    // The main program's handle: whatever C library it runs with.
    dlsym(dlopen(nil, RTLD_NOW), name).map { unsafeBitCast($0, to: F.self) }
  }

  private static func processorSeconds() -> Double {
    var time = timespec()
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time)
    return Double(time.tv_sec) + Double(time.tv_nsec) * 1e-9
  }
}
