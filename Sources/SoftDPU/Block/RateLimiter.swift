import CLinux
import Glibc

/// Limits of a block device (`bdev_set_qos_limit`): 0 is no limit.
struct RateLimits: Sendable, Hashable {
  /// Requests a second, of reads and writes together.
  var operations: UInt64 = 0
  /// Bytes a second: together, of reads, of writes.
  var bytes: UInt64 = 0
  var readBytes: UInt64 = 0
  var writeBytes: UInt64 = 0

  var isUnlimited: Bool { self == RateLimits() }
}

/// `a * b / c` without losing digits; the greatest number where that does not fit.
private func muldiv(_ a: UInt64, _ b: UInt64, _ c: UInt64) -> UInt64 {
  let product = a.multipliedFullWidth(by: b)
  return product.high < c ? c.dividingFullWidth(product).quotient : .max
}

/// An account that fills at a constant rate. A request is let through while the account is not overdrawn, and may
/// overdraw it: so a request larger than a moment's allowance passes, and is paid for before the next.
package struct RateAccount: Sendable, Hashable {
  /// Units a second; 0 is no limit.
  package let rate: UInt64
  private var balance: Int64
  private var filled: UInt64

  /// The most that an idle account saves up: a hundredth of a second's, and at least one unit.
  private var ceiling: Int64 { Int64(clamping: max(1, rate / 100)) }

  package init(rate: UInt64, now: UInt64) {
    self.rate = rate
    balance = 0
    filled = now
    balance = ceiling
  }

  /// Adds what has accrued up to `now`.
  package mutating func fill(_ now: UInt64) {
    guard rate > 0, now > filled else { return }
    let second: UInt64 = 1_000_000_000
    let elapsed = now - filled
    let earned = muldiv(elapsed, rate, second)
    guard earned > 0 else { return }
    let (sum, isTooMuch) = balance.addingReportingOverflow(Int64(clamping: earned))
    balance = isTooMuch ? ceiling : min(ceiling, sum)
    // Only the time that was turned into whole units is used up, so that slow rates lose nothing.
    filled += min(elapsed, muldiv(earned, second, rate))
  }

  package var isOverdrawn: Bool { rate > 0 && balance <= 0 }

  package mutating func take(_ amount: UInt64) {
    guard rate > 0 else { return }
    let (rest, isTooMuch) = balance.subtractingReportingOverflow(Int64(clamping: amount))
    balance = isTooMuch ? .min + 1 : rest
  }

  /// Nanoseconds from the last `fill` until the account is in credit.
  package var wait: UInt64 {
    guard isOverdrawn else { return 0 }
    return max(1, min(60_000_000_000, muldiv(UInt64(1 &- balance), 1_000_000_000, rate) &+ 1))
  }
}

/// The limits of one target, and the requests that wait for them in the order of their arrival. Reactor's thread.
@unsafe
struct RateLimiter {
  private(set) var limits: RateLimits
  private var operations: RateAccount
  private var bytes: RateAccount
  private var readBytes: RateAccount
  private var writeBytes: RateAccount
  var first: UnsafeMutablePointer<BlockIO>?
  var last: UnsafeMutablePointer<BlockIO>?
  /// A timer will look at the queue.
  var isArmed = false

  init(_ limits: RateLimits, now: UInt64) {
    unsafe self.limits = limits
    unsafe operations = RateAccount(rate: limits.operations, now: now)
    unsafe bytes = RateAccount(rate: limits.bytes, now: now)
    unsafe readBytes = RateAccount(rate: limits.readBytes, now: now)
    unsafe writeBytes = RateAccount(rate: limits.writeBytes, now: now)
  }

  mutating func set(_ limits: RateLimits, now: UInt64) {
    let (first, last, isArmed) = unsafe (self.first, self.last, self.isArmed)
    unsafe self = RateLimiter(limits, now: now)
    unsafe self.isArmed = isArmed
    unsafe self.first = unsafe first
    unsafe self.last = unsafe last
  }

  /// 0 where the request may pass, and has been charged for; otherwise how many nanoseconds to wait.
  mutating func charge(_ io: UnsafeMutablePointer<BlockIO>, now: UInt64) -> UInt64 {
    let kind = unsafe io.pointee.kind
    guard kind == .read || kind == .write else { return 0 }
    unsafe operations.fill(now)
    unsafe bytes.fill(now)
    unsafe readBytes.fill(now)
    unsafe writeBytes.fill(now)
    let direction = unsafe kind == .read ? readBytes.wait : writeBytes.wait
    let wait = unsafe max(operations.wait, bytes.wait, direction)
    guard wait == 0 else { return wait }
    unsafe operations.take(1)
    unsafe bytes.take(io.pointee.length)
    if kind == .read {
      unsafe readBytes.take(io.pointee.length)
    } else {
      unsafe writeBytes.take(io.pointee.length)
    }
    return 0
  }
}

// SAFETY, below: a limiter is allocated with its target's first limit and freed with the target; waiting requests are
// counted in `inflight`, so that the target stays.

/// Whether the request may go on now; otherwise it waits in the limiter's queue.
func admit(_ io: UnsafeMutablePointer<BlockIO>, _ core: UnsafeMutablePointer<ReactorCore>) -> Bool {
  let target = unsafe io.pointee.target
  guard let limiter = unsafe target.pointee.limiter else { return true }
  if unsafe limiter.pointee.first == nil {
    let now = unsafe io.pointee.began
    let wait = unsafe limiter.pointee.charge(io, now: now)
    if wait == 0 { return true }
    unsafe arm(target, at: now &+ wait, core)
  }
  unsafe io.pointee.next = nil
  if let last = unsafe limiter.pointee.last {
    unsafe last.pointee.next = unsafe io
  } else {
    unsafe limiter.pointee.first = unsafe io
  }
  unsafe limiter.pointee.last = unsafe io
  return false
}

/// Lets waiting requests through, as far as the limits allow.
func releaseWaiting(_ target: UnsafeMutablePointer<BlockTarget>, _ core: UnsafeMutablePointer<ReactorCore>) {
  guard let limiter = unsafe target.pointee.limiter else { return }
  let now = clinux_monotonic_nanoseconds()
  while let io = unsafe limiter.pointee.first {
    let wait = unsafe limiter.pointee.charge(io, now: now)
    guard wait == 0 else {
      unsafe arm(target, at: now &+ wait, core)
      return
    }
    unsafe limiter.pointee.first = unsafe io.pointee.next
    if unsafe io.pointee.next == nil { unsafe limiter.pointee.last = nil }
    unsafe io.pointee.next = nil
    unsafe io.pointee.admitted = now
    unsafe dispatch(io, core)
  }
}

/// One timer at a time for each limiter.
private func arm(
  _ target: UnsafeMutablePointer<BlockTarget>, at deadline: UInt64, _ core: UnsafeMutablePointer<ReactorCore>
) {
  guard let limiter = unsafe target.pointee.limiter, unsafe !limiter.pointee.isArmed else { return }
  unsafe limiter.pointee.isArmed = true
  unsafe core.pointee.schedule(at: deadline, limiterDue, target)
}

private let limiterDue: TimerQueue.Action = { target, core in
  let target = unsafe target.assumingMemoryBound(to: BlockTarget.self)
  unsafe target.pointee.limiter?.pointee.isArmed = false
  unsafe releaseWaiting(target, core.assumingMemoryBound(to: ReactorCore.self))
}
