import CLinux
import Glibc
import Synchronization

/// One thread with one ring: everything that happens to a volume happens here, so that nothing of it needs a lock.
///
/// The thread sleeps in the kernel until a guest rings, a file answers, a socket has bytes or `post` brings work; an
/// idle reactor takes no processor time.
///
/// SAFETY: `core` and `frozen` are touched on the reactor's thread only; the rest is behind the mutex. That makes the
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
  private var frozen: [VhostSession] = []

  private static let entries: UInt32 = 2048
  private static let batch = 256
  private static let maximumDirty = 65536

  /// Starts the thread.
  init(number: Int) throws(SoftDPUError) {
    self.number = number
    bell = eventfd(0, CInt(EFD_CLOEXEC) | CInt(EFD_NONBLOCK))
    guard bell >= 0 else { throw .system(errno, "create an eventfd") }
    ended = Latch()
    unsafe core = UnsafeMutablePointer<ReactorCore>.allocate(capacity: 1)
    let started = Latch()
    let outcome = Mutex<SoftDPUError?>(nil)
    let body = ThreadBody(name: "reactor-\(number)") { [self] in
      do throws(SoftDPUError) {
        let ring = try Ring.create(entries: Reactor.entries)
        unsafe core.initialize(to: ReactorCore(ring: ring, capacity: Reactor.maximumDirty))
      } catch {
        outcome.withLock { $0 = error }
        started.open()
        return
      }
      started.open()
      run()
      unsafe core.pointee.ring.destroy()
      unsafe core.pointee.deallocate()
      unsafe core.deallocate()
      ended.open()
    }
    guard body.start() else {
      close(bell)
      unsafe core.deallocate()
      throw .system(EAGAIN, "start a reactor's thread")
    }
    started.wait()
    if let error = outcome.withLock({ $0 }) {
      close(bell)
      unsafe core.deallocate()
      throw error
    }
  }

  /// Runs `work` on the reactor's thread, in the order of the calls; after `stop` it is dropped.
  func post(_ work: @escaping @Sendable () -> Void) {
    let isFirst = mailbox.withLock { mailbox -> Bool in
      guard !mailbox.isStopping else { return false }
      mailbox.work.append(work)
      return mailbox.work.count == 1
    }
    if isFirst { ringBell() }
  }

  /// Ends the thread, and waits for its end. Sessions have to be closed before.
  func stop() {
    mailbox.withLock { $0.isStopping = true }
    ringBell()
    ended.wait()
    close(bell)
  }

  private func ringBell() {
    var one: UInt64 = 1
    _ = unsafe write(bell, &one, 8)
  }

  // MARK: On the thread

  var ring: Ring { unsafe core.pointee.ring }

  private func run() {
    let bellWatch = Watch(fd: bell) { [self] in openMailbox() }
    unsafe bellWatch.arm(core.pointee.ring)
    let entries = UnsafeMutablePointer<UnsafeMutablePointer<io_uring_cqe>?>.allocate(capacity: Reactor.batch)
    defer { unsafe entries.deallocate() }
    while !mailbox.withLock({ $0.isStopping && $0.work.isEmpty }) {
      unsafe turn(entries)
      if !frozen.isEmpty { resumeDrained() }
    }
    unsafe bellWatch.cancel(core.pointee.ring)
    unsafe core.pointee.ring.submit()
  }

  /// One turn: wait, take what the kernel has, serve the queues.
  private func turn(_ entries: UnsafeMutablePointer<UnsafeMutablePointer<io_uring_cqe>?>) {
    let core = unsafe self.core
    let ring = unsafe core.pointee.ring
    _ = unsafe core.pointee.dirtyCount == 0 ? ring.submitAndWait(1) : ring.submitAndCollect()
    while true {
      let count = unsafe ring.completions(entries, capacity: UInt32(Reactor.batch))
      for index in 0..<Int(count) {
        guard let entry = unsafe entries[index] else { continue }
        let data = unsafe entry.pointee.user_data
        let result = unsafe entry.pointee.res
        let address = UInt(data & ~Tag.mask)
        switch data & Tag.mask {
        case Tag.request:
          guard let slot = unsafe UnsafeMutablePointer<Slot>(bitPattern: address) else { continue }
          if unsafe !finish(slot, Int(result), core) { unsafe submit(slot, core) }
        case Tag.watch:
          guard let pointer = unsafe UnsafeRawPointer(bitPattern: address) else { continue }
          unsafe Watch.handle(pointer, result: result, hasMore: entry.pointee.flags & IORING_CQE_F_MORE != 0, core)
        default: continue
        }
      }
      ring.advance(count)
      if count < UInt32(Reactor.batch) { break }
    }
    serveDirty()
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

  /// Has the session's `drained` called as soon as none of its requests is in the kernel's hands.
  func whenDrained(_ session: VhostSession) {
    if !frozen.contains(where: { $0 === session }) { frozen.append(session) }
  }

  private func resumeDrained() {
    let ready = frozen.filter(\.isDrained)
    guard !ready.isEmpty else { return }
    frozen.removeAll(where: \.isDrained)
    for session in ready { session.drained() }
  }
}
