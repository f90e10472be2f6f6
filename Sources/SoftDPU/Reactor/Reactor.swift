import CLinux
import Glibc
import Synchronization

/// One thread with one ring: everything that happens to a volume happens here, so that nothing of it needs a lock.
///
/// The thread sleeps in the kernel until a guest rings, a file answers, a socket has bytes or `post` brings work; an
/// idle reactor takes no processor time.
///
/// SAFETY: `core`, `frozen` and `ledger` are touched on the reactor's thread only; the rest is behind the mutex. That makes the
/// class sendable, though the compiler cannot see it.
@safe
final class Reactor: @unchecked Sendable {
  private struct Mailbox {
    var work: [@Sendable () -> Void] = []
    var isStopping = false
  }

  let number: Int
  private let bell: CInt
  private let mailbox = Mutex(Mailbox())
  private let ended: Latch
  /// Set by the thread before `init` returns.
  private(set) var core: UnsafeMutablePointer<ReactorCore>
  /// Sessions that wait for their requests to come back.
  private var frozen: [ObjectIdentifier: any Drainable] = [:]
  /// Reactor's thread.
  let ledger = QueueLedger()
  private let clock: CInt
  /// The deadline that `clock` was set to; 0 where it is not set.
  private var clockDeadline: UInt64 = 0

  private static let entries: UInt32 = 2048
  private static let batch = 256
  private static let maximumDirty = 65536
  /// How often, a millisecond apart, the end of the thread looks for the last completions.
  private static let farewells = 200

  /// Starts the thread.
  init(number: Int) throws(SoftDPUError) {
    self.number = number
    bell = eventfd(0, CInt(EFD_CLOEXEC) | CInt(EFD_NONBLOCK))
    guard bell >= 0 else { throw .system(errno, "create an eventfd") }
    clock = timerfd_create(CLOCK_MONOTONIC, CInt(TFD_CLOEXEC) | CInt(TFD_NONBLOCK))
    guard clock >= 0 else {
      let error = errno
      close(bell)
      throw .system(error, "create a timerfd")
    }
    ended = Latch()
    unsafe core = UnsafeMutablePointer<ReactorCore>.allocate(capacity: 1)
    let started = Latch()
    let outcome = Mutex<SoftDPUError?>(nil)
    let body = ThreadBody(name: "reactor-\(number)") { [self] in
      do throws(SoftDPUError) {
        let ring = try Ring.create(entries: Reactor.entries)
        unsafe core.initialize(to: ReactorCore(ring: ring, number: number, capacity: Reactor.maximumDirty))
      } catch {
        outcome.withLock { $0 = error }
        started.open()
        return
      }
      started.open()
      run()
      unsafe core.pointee.ring.destroy()
      unsafe core.pointee.deallocate()
      unsafe core.deinitialize(count: 1)
      unsafe core.deallocate()
      ended.open()
    }
    guard body.start() else {
      close(bell)
      close(clock)
      unsafe core.deallocate()
      throw .system(EAGAIN, "start a reactor's thread")
    }
    started.wait()
    if let error = outcome.withLock({ $0 }) {
      close(bell)
      close(clock)
      unsafe core.deallocate()
      throw error
    }
  }

  /// Runs `work` on the reactor's thread, in the order of the calls; after `stop` it is dropped, and the result false.
  @discardableResult
  func post(_ work: @escaping @Sendable () -> Void) -> Bool {
    let count = mailbox.withLock { mailbox -> Int in
      guard !mailbox.isStopping else { return 0 }
      mailbox.work.append(work)
      return mailbox.work.count
    }
    if count == 1 { ringBell() }
    return count > 0
  }

  /// Ends the thread, and waits for its end. Sessions have to be closed before.
  func stop() {
    mailbox.withLock { $0.isStopping = true }
    ringBell()
    ended.wait()
    close(bell)
    close(clock)
  }

  /// Lets this reactor hand requests to the others. Before the first request.
  func meet(_ reactors: [Reactor]) {
    sync { [self] in unsafe core.pointee.reactors = reactors.map { unsafe Unmanaged.passUnretained($0) } }
  }

  private func ringBell() {
    var one: UInt64 = 1
    _ = unsafe write(bell, &one, 8)
  }

  // MARK: On the thread

  var ring: Ring { unsafe core.pointee.ring }

  private func run() {
    let bellWatch = Watch(fd: bell) { [self] in openMailbox() }
    unsafe bellWatch.arm(core)
    let clockWatch = Watch(fd: clock) { [self] in runTimers() }
    unsafe clockWatch.arm(core)
    let entries = UnsafeMutablePointer<UnsafeMutablePointer<io_uring_cqe>?>.allocate(capacity: Reactor.batch)
    defer { unsafe entries.deallocate() }
    while !mailbox.withLock({ $0.isStopping && $0.work.isEmpty }) {
      unsafe turn(entries)
      if !frozen.isEmpty { resumeDrained() }
      unsafe setClock(core.pointee.timers.next)
    }
    unsafe bellWatch.cancel(core.pointee.ring)
    unsafe clockWatch.cancel(core.pointee.ring)
    // What the kernel keeps alive, it lets go of with the last completion; a watch that nobody cancelled is not waited for.
    for _ in 0..<Reactor.farewells where unsafe core.pointee.armedWatches > 0 {
      unsafe takeCompletions(entries, waits: false)
      if unsafe core.pointee.armedWatches > 0 { usleep(1000) }
    }
  }

  /// One turn: wait, take what the kernel has, serve the queues.
  private func turn(_ entries: UnsafeMutablePointer<UnsafeMutablePointer<io_uring_cqe>?>) {
    unsafe takeCompletions(entries, waits: core.pointee.dirtyCount == 0 && core.pointee.deferred.isEmpty)
    serveDirty()
    if unsafe !core.pointee.deferred.isEmpty { runDeferred() }
  }

  private func takeCompletions(
    _ entries: UnsafeMutablePointer<UnsafeMutablePointer<io_uring_cqe>?>, waits: Bool
  ) {
    let core = unsafe self.core
    let ring = unsafe core.pointee.ring
    let submitted = waits ? ring.submitAndWait(1) : ring.submitAndCollect()
    // What the kernel did not take stays in the ring. Without a pause the thread would ask for it in a circle.
    if Retry(afterRequest: Int(submitted)) == .later { usleep(1000) }
    unsafe core.pointee.now = clinux_monotonic_nanoseconds()
    while true {
      let count = unsafe ring.completions(entries, capacity: UInt32(Reactor.batch))
      for index in 0..<Int(count) {
        guard let entry = unsafe entries[index] else { continue }
        let data = unsafe entry.pointee.user_data
        let result = unsafe entry.pointee.res
        let address = UInt(data & ~Tag.mask)
        switch data & Tag.mask {
        case Tag.request:
          guard let io = unsafe UnsafeMutablePointer<BlockIO>(bitPattern: address) else { continue }
          unsafe fileAnswered(io, Int(result), core)
        case Tag.watch:
          guard let pointer = unsafe UnsafeRawPointer(bitPattern: address) else { continue }
          unsafe Watch.handle(pointer, result: result, hasMore: entry.pointee.flags & IORING_CQE_F_MORE != 0, core)
        case Tag.writable:
          guard let pointer = unsafe UnsafeMutablePointer<Stream>(bitPattern: address) else { continue }
          if Retry(afterRequest: Int(result)) == .later {
            unsafe core.pointee.flushLater(pointer)
          } else {
            unsafe pointer.pointee.isBlocked = false
            unsafe flush(pointer, core)
          }
        default: continue
        }
      }
      ring.advance(count)
      if count < UInt32(Reactor.batch) { break }
    }
  }

  private func runDeferred() {
    let core = unsafe self.core
    // What an action adds is done in the next turn, so that a busy connection does not keep out the others.
    let count = unsafe core.pointee.deferred.count
    for index in 0..<count {
      let (action, context) = unsafe core.pointee.deferred[index]
      unsafe action(context, core)
    }
    unsafe core.pointee.deferred.removeFirst(count)
  }

  private func serveDirty() {
    let core = unsafe self.core
    let count = unsafe core.pointee.dirtyCount
    guard count > 0 else { return }
    let queues = unsafe core.pointee.turn
    unsafe queues.update(from: core.pointee.dirty, count: count)
    unsafe core.pointee.dirtyCount = 0
    for index in 0..<count { unsafe queues[index].pointee.isDirty = false }
    for index in 0..<count {
      unsafe publish(queues[index], core)
      unsafe takeAvailable(queues[index], core)
      unsafe publish(queues[index], core)
    }
  }

  private func openMailbox() {
    var count: UInt64 = 0
    _ = unsafe read(bell, &count, 8)
    let work = mailbox.withLock { mailbox in
      defer { mailbox.work = [] }
      return mailbox.work
    }
    for item in work { item() }
  }

  /// Has the clock ring at the next deadline.
  private func setClock(_ deadline: UInt64?) {
    let deadline = deadline ?? 0
    guard deadline != clockDeadline else { return }
    clockDeadline = deadline
    var value = itimerspec()
    value.it_value.tv_sec = Int(deadline / 1_000_000_000)
    value.it_value.tv_nsec = Int(deadline % 1_000_000_000)
    _ = unsafe timerfd_settime(clock, CInt(TFD_TIMER_ABSTIME), &value, nil)
  }

  private func runTimers() {
    var count: UInt64 = 0
    _ = unsafe read(clock, &count, 8)
    clockDeadline = 0
    let core = unsafe self.core
    let now = clinux_monotonic_nanoseconds()
    // What a timer adds for a time that is over waits for the next turn: others are not kept waiting.
    var budget = 4096
    while budget > 0, let (action, context) = unsafe core.pointee.timers.takeDue(now) {
      budget -= 1
      guard let context = unsafe UnsafeMutableRawPointer(bitPattern: context) else { continue }
      unsafe action(context, core)
    }
  }

  /// Runs `work` on the reactor's thread and waits for it; after `stop`, where it can do nothing, on the caller's.
  func sync<Value: Sendable>(_ work: @escaping @Sendable () -> Value) -> Value {
    let latch = Latch()
    let result = Mutex<Value?>(nil)
    let isPosted = post {
      let value = work()
      result.withLock { $0 = value }
      latch.open()
    }
    if isPosted { latch.wait() }
    return result.withLock { $0 } ?? work()
  }

  /// Has the session's `drained` called as soon as none of its requests is in the kernel's hands.
  func whenDrained(_ session: any Drainable) { frozen[ObjectIdentifier(session)] = session }

  private func resumeDrained() {
    let ready = frozen.values.filter(\.isDrained)
    for session in ready { frozen[ObjectIdentifier(session)] = nil }
    for session in ready { session.drained() }
  }
}

/// Something that waits until none of its requests is under way.
protocol Drainable: AnyObject {
  var isDrained: Bool { get }
  /// Called on the reactor's thread once `isDrained` is true.
  func drained()
}
