import Glibc
import TestSupport
import Testing
import VhostFrontend

/// A guest that breaks the rules of the ring harms its own disk only.
@Suite struct HostileGuestTests {
  /// Makes a chain available and tells whether the target answered it, or stopped the queue.
  private func offer(_ frontend: VhostFrontend, head: UInt16) -> Bool {
    let queue = frontend.queues[0]
    queue.makeAvailable(head)
    queue.ringBell()
    // Another queue is served after this one: when it answered, the target has looked at the chain.
    _ = try? frontend.perform(VhostFrontend.flushType, queue: 1)
    return queue.hasCompletions
  }

  private static let readable: UInt16 = 0
  private static let next: UInt16 = 1
  private static let writable: UInt16 = 2
  private static let indirect: UInt16 = 4

  @Test(arguments: [
    "a loop", "an index out of range", "a head out of range", "an address out of range", "an address that overflows",
    "a readable piece after a writable one", "no status", "no header", "a table in a table", "a table with a successor",
    "a table of odd length", "a table that is too long", "a table out of range", "an empty piece",
    "a jump of the index",
  ])
  func stopsAQueueWhoseChainIsBroken(fault: String) async throws {
    let target = try Target()
    let frontend = try await target.frontend(queues: 2)
    let queue = frontend.queues[0]
    let good = frontend.ram.guestAddress(queue.dataOffset)
    let last = frontend.ram.guestAddress(frontend.ram.length) - 8
    func piece(_ index: Int, _ address: UInt64, _ length: UInt32, _ flags: UInt16, _ next: UInt16 = 0) {
      queue.writeDescriptor(index, address: address, length: length, flags: flags, next: next)
    }
    // A sound request, of which one thing is wrong.
    piece(0, good, 16, Self.next, 1)
    piece(1, good + 16, 512, Self.next | Self.writable, 2)
    piece(2, good + 1024, 1, Self.writable)
    var head: UInt16 = 0
    switch fault {
    case "a loop": piece(2, good, 1, Self.next | Self.writable, 1)
    case "an index out of range": piece(1, good, 512, Self.next | Self.writable, 128)
    case "a head out of range": head = 128
    case "an address out of range": piece(1, last, 512, Self.next | Self.writable, 2)
    case "an address that overflows": piece(1, .max - 10, 512, Self.next | Self.writable, 2)
    case "a readable piece after a writable one": piece(2, good, 1, Self.readable)
    case "no status": piece(1, good + 16, 512, Self.readable)
    case "no header": piece(0, good, 15, Self.next, 2)
    case "a table in a table":
      piece(0, good, 16, Self.indirect)
      queue.data(0).copyBytes(from: [UInt8](repeating: 0, count: 12) + [4, 0, 0, 0])
    case "a table with a successor": piece(0, good, 32, Self.indirect | Self.next, 1)
    case "a table of odd length": piece(0, good, 33, Self.indirect)
    case "a table that is too long": piece(0, good, 16 * 1025, Self.indirect)
    case "a table out of range": piece(0, last, 32, Self.indirect)
    case "an empty piece": piece(1, good, 0, Self.next | Self.writable, 2)
    case "a jump of the index": for _ in 0..<200 { queue.makeAvailable(0) }
    default: Issue.record("no such fault")
    }
    #expect(!offer(frontend, head: head))
    // The queue stays stopped, the others go on, and a new connection starts afresh.
    #expect(!offer(frontend, head: 0))
    #expect(try frontend.perform(VhostFrontend.readType, read: 512, queue: 1).status == statusOK)
    _ = try frontend.stop(queue)
    frontend.disconnect()
    let second = try VhostFrontend(path: target.socket)
    try second.start()
    #expect(try second.perform(VhostFrontend.readType, read: 512).status == statusOK)
  }

  @Test func survivesRandomDescriptors() async throws {
    let target = try Target()
    var frontend = try await target.frontend(queues: 2, slotLength: 4096)
    var generator = SeededGenerator(seed: 6)
    var answered = 0
    for _ in 0..<400 {
      // The front end blocks its thread, of which there are few: let other tests go on.
      await Task.yield()
      let queue = frontend.queues[0]
      for index in 0..<16 {
        // Mostly inside the memory, so that many chains get far.
        let inside = frontend.ram.guestAddress(
          queue.dataOffset + Int.random(in: 0..<4096, using: &generator) & ~15)
        let address = Int.random(in: 0..<10, using: &generator) == 0 ? generator.next() : inside
        let length = [16, 1, 512, 4096, UInt32.random(in: 0 ... .max, using: &generator)].randomElement(
          using: &generator)
        // Mostly a chain in order: a header, data of either kind, a status; here and there anything.
        let isOdd = Int.random(in: 0..<8, using: &generator) == 0
        let ending = Int.random(in: 2...6, using: &generator)
        let orderly = (index < ending ? Self.next : 0) | (index * 2 > ending ? Self.writable : 0)
        queue.writeDescriptor(
          index, address: address, length: index == 0 ? 16 : length ?? 16,
          flags: isOdd ? UInt16.random(in: 0...7, using: &generator) : orderly,
          next: isOdd ? UInt16.random(in: 0...17, using: &generator) : UInt16(index + 1))
      }
      queue.data(0).copyBytes(from: generator.bytes(64))
      // Random requests must not reach the file's sound part by luck alone; types are near the real ones.
      queue.data(0)[0] = UInt8.random(in: 0...14, using: &generator)
      for index in 1..<16 { queue.data(0)[index] = 0 }
      let isAnswered = offer(frontend, head: UInt16.random(in: 0...2, using: &generator))
      queue.reap { _, _ in answered += 1 }
      if !isAnswered {
        frontend.disconnect()
        frontend = try VhostFrontend(path: target.socket, queues: 2, slotLength: 4096)
        try frontend.start()
      }
    }
    #expect(answered > 10)
    #expect(try frontend.perform(VhostFrontend.readType, read: 512, queue: 1).status == statusOK)
  }

  @Test func survivesRandomMessages() async throws {
    let target = try Target()
    _ = try await target.frontend()
    var generator = SeededGenerator(seed: 7)
    for _ in 0..<300 {
      await Task.yield()
      let frontend = try VhostFrontend(path: target.socket)
      try frontend.connect()
      for _ in 0..<6 {
        let payload = generator.bytes([0, 8, 12, 40, 264].randomElement(using: &generator) ?? 0)
        let fds = Bool.random(using: &generator) ? [frontend.ram.fd] : []
        let request = UInt32.random(in: 0...45, using: &generator)
        guard (try? frontend.send(request, payload, fds, flags: Bool.random(using: &generator) ? 1 : 9)) != nil else {
          break
        }
      }
      frontend.disconnect()
    }
    let frontend = try VhostFrontend(path: target.socket)
    try frontend.start()
    #expect(try frontend.perform(VhostFrontend.readType, read: 512).status == statusOK)
  }

  /// A chain that stopped its queue must not be waiting for the driver that comes after a reboot.
  @Test func startsCleanlyAfterAReboot() async throws {
    let target = try Target()
    let frontend = try await target.frontend(queues: 2)
    let queue = frontend.queues[0]
    queue.writeDescriptor(0, address: 0, length: 16, flags: 0, next: 0)
    #expect(!offer(frontend, head: 0))
    for queue in frontend.queues { _ = try frontend.stop(queue) }
    // The new driver's rings begin at zero; the record of requests in flight is the old one.
    for queue in frontend.queues {
      queue.reset()
      try frontend.start(queue, base: 0)
    }
    for index in 0..<2 {
      #expect(try frontend.perform(VhostFrontend.readType, read: 512, queue: index).status == statusOK)
    }
  }

  @Test func survivesMemoryThatIsTakenAway() async throws {
    let target = try Target()
    let frontend = try await target.frontend(queues: 2)
    #expect(try frontend.perform(VhostFrontend.readType, read: 512).status == statusOK)
    // The front end shortens the file under the target's mapping: a touch would be a SIGBUS.
    ftruncate(frontend.ram.fd, 0)
    frontend.queues.forEach { $0.ringBell() }
    frontend.disconnect()
    let second = try VhostFrontend(path: target.socket)
    try second.start()
    #expect(try second.perform(VhostFrontend.readType, read: 512).status == statusOK)
  }
}
