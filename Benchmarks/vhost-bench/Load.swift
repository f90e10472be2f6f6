import CLinux
import Glibc
import VhostFrontend

/// Keeps a number of random requests in flight.
final class Load {
  private let frontend: VhostFrontend
  private let depth: Int
  private let blocks: UInt64
  private let isWrite: Bool
  private var random: UInt64
  private var inflight: [Int]
  private let poller: CInt

  init(frontend: VhostFrontend, depth: Int, sectors: UInt64, isWrite: Bool, seed: UInt64) {
    self.frontend = frontend
    self.depth = min(depth, frontend.queues[0].slots)
    blocks = sectors / 8
    self.isWrite = isWrite
    random = seed &* 0x9E37_79B9_7F4A_7C15 | 1
    inflight = Array(repeating: 0, count: frontend.queues.count)
    poller = epoll_create1(CInt(EPOLL_CLOEXEC))
    for (index, queue) in frontend.queues.enumerated() {
      var event = epoll_event()
      event.events = EPOLLIN.rawValue
      event.data.u32 = UInt32(index)
      epoll_ctl(poller, EPOLL_CTL_ADD, queue.callFD, &event)
    }
  }

  deinit { close(poller) }

  /// Runs for a time and returns how many requests came back.
  @discardableResult
  func run(seconds: Double) throws -> Int {
    for (index, queue) in frontend.queues.enumerated() where inflight[index] == 0 {
      for slot in 0..<depth { submit(queue, slot) }
      inflight[index] = depth
      queue.kick()
    }
    let end = clinux_monotonic_nanoseconds() + UInt64(seconds * 1e9)
    var count = 0
    while clinux_monotonic_nanoseconds() < end {
      for queue in frontend.queues {
        var back = 0
        queue.reap { head, _ in
          back += 1
          submit(queue, Int(head) / 3)
        }
        if back > 0 {
          count += back
          queue.kick()
        }
        queue.armBell()
      }
      if !frontend.queues.contains(where: \.hasCompletions) { try sleep() }
    }
    return count
  }

  /// Waits until nothing is in flight.
  func drain() throws {
    for (index, queue) in frontend.queues.enumerated() {
      while inflight[index] > 0 {
        queue.reap { _, _ in inflight[index] -= 1 }
        if inflight[index] > 0, !queue.wait(milliseconds: 10_000) { throw FrontendError("a request never came back") }
      }
    }
  }

  private func sleep() throws {
    var events = [epoll_event](repeating: epoll_event(), count: 8)
    let count = epoll_wait(poller, &events, 8, 10_000)
    guard count > 0 else { throw FrontendError("no completion within 10 s") }
    for event in events.prefix(Int(count)) {
      var value: UInt64 = 0
      _ = read(frontend.queues[Int(event.data.u32)].callFD, &value, 8)
    }
  }

  @inline(__always)
  private func submit(_ queue: FrontendQueue, _ slot: Int) {
    random ^= random << 13
    random ^= random >> 7
    random ^= random << 17
    let type = isWrite ? VhostFrontend.writeType : VhostFrontend.readType
    queue.submit(slot: slot, type: type, sector: random % blocks * 8, length: 4096, writable: !isWrite)
  }
}
