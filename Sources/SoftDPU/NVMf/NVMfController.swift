import CLinux
import Glibc
import Logging

/// A controller: what one host sees of a subsystem, from the connection of its admin queue on.
///
/// SAFETY: used on the target's reactor only.
@safe
final class NVMfController: @unchecked Sendable {
  let id: UInt16
  let subsystemNQN: String
  let hostNQN: String
  let hostID: [UInt8]
  /// nil for discovery.
  let table: NamespaceTable?
  unowned let admin: NVMfConnection
  private(set) var queues: [UInt16: NVMfConnection] = [:]
  /// CC and CSTS.
  var configuration: UInt32 = 0
  private(set) var status: UInt32 = 0
  /// In milliseconds; 0 is none.
  var keepAlive: UInt32
  var lastSeen: UInt64
  var eventConfiguration: UInt32 = 0
  private var eventRequests: [UnsafeMutablePointer<NVMfSlot>] = unsafe []
  private var changed: Set<UInt32> = []
  private var isChangeMasked = false
  private let reactor: Reactor
  /// Bytes that the commands of its I/O queues hold, all together.
  let held: UnsafeMutablePointer<Int>

  /// How long a discovery controller of a host that gives no keep-alive time may be silent, in milliseconds: as SPDK.
  private static let discoveryKeepAlive: UInt32 = 120_000

  init(
    id: UInt16, subsystemNQN: String, hostNQN: String, hostID: [UInt8], table: NamespaceTable?,
    admin: NVMfConnection, keepAlive: UInt32, reactor: Reactor
  ) {
    self.id = id
    self.subsystemNQN = subsystemNQN
    self.hostNQN = hostNQN
    self.hostID = hostID
    self.table = table
    self.admin = admin
    self.keepAlive = keepAlive
    self.reactor = reactor
    unsafe held = .allocate(capacity: 1)
    unsafe held.initialize(to: 0)
    lastSeen = clinux_monotonic_nanoseconds()
    watchKeepAlive()
  }

  deinit { unsafe held.deallocate() }

  var isDiscovery: Bool { table == nil }
  var isReady: Bool { status & 1 != 0 }

  // MARK: State

  /// Takes a write of CC (NVMe 1.4, section 3.1.5).
  func configure(_ value: UInt32) {
    let wasEnabled = configuration & 1 != 0
    configuration = value
    let isEnabled = value & 1 != 0
    if isEnabled, !wasEnabled { status = status & ~0b1100 | 1 }
    if !isEnabled, wasEnabled {
      status &= ~1
      for queue in queues.values { queue.close("the controller was reset") }
    }
    // A shutdown is complete at once: what was acknowledged as flushed is on disk.
    if value >> 14 & 3 != 0 { status = status & ~0b1100 | 0b1000 }
  }

  func add(_ queue: NVMfConnection, _ number: UInt16) -> Bool {
    guard queues[number] == nil else { return false }
    queues[number] = queue
    return true
  }

  func remove(_ queue: NVMfConnection) {
    for (number, other) in queues where other === queue { queues[number] = nil }
  }

  /// The admin queue is gone: so are the others.
  func end() {
    unsafe reactor.core.pointee.timers.remove(context: Unmanaged.passUnretained(self).toOpaque())
    for queue in queues.values { queue.close("the admin queue is gone") }
    unsafe eventRequests.removeAll()
  }

  // MARK: Keep-alive

  func seen() { lastSeen = clinux_monotonic_nanoseconds() }

  /// A host that is silent for its time, and half as long again for the way, has gone.
  func watchKeepAlive() {
    unsafe reactor.core.pointee.timers.remove(context: Unmanaged.passUnretained(self).toOpaque())
    // Anybody may come to the discovery subsystem, and would stay for ever.
    if keepAlive == 0, isDiscovery { keepAlive = NVMfController.discoveryKeepAlive }
    guard keepAlive > 0 else { return }
    // What a host asks for below a second would keep the reactor busy.
    keepAlive = max(keepAlive, 1000)
    let deadline = lastSeen &+ UInt64(keepAlive) * 1_500_000
    unsafe reactor.core.pointee.schedule(
      at: deadline,
      { controller, _ in
        unsafe Unmanaged<NVMfController>.fromOpaque(controller)._withUnsafeGuaranteedRef { $0.checkKeepAlive() }
      }, Unmanaged.passUnretained(self).toOpaque())
  }

  private func checkKeepAlive() {
    let silence = clinux_monotonic_nanoseconds() &- lastSeen
    if keepAlive > 0, silence >= UInt64(keepAlive) * 1_500_000 {
      admin.close("no keep-alive for \(silence / 1_000_000) ms")
    } else {
      watchKeepAlive()
    }
  }

  // MARK: Events

  /// Keeps an event request; false where there are too many.
  func keep(_ slot: UnsafeMutablePointer<NVMfSlot>) -> Bool {
    guard unsafe eventRequests.count < IdentifyData.maximumEventRequests else { return false }
    unsafe eventRequests.append(slot)
    tellChanges()
    return true
  }

  /// Takes an event request back that the host aborts; false where there is none.
  func abort(_ commandID: UInt16) -> Bool {
    guard let index = unsafe eventRequests.firstIndex(where: { unsafe $0.pointee.field16(2) == commandID }) else {
      return false
    }
    let slot = unsafe eventRequests.remove(at: index)
    unsafe complete(slot, NVMe.Status.abortedByRequest, reactor.core)
    return true
  }

  /// A namespace came, went, or has another size.
  func noteChange(_ namespace: UInt32) {
    changed.insert(namespace)
    tellChanges()
  }

  /// Tells the host, once until it has read what changed.
  private func tellChanges() {
    guard !changed.isEmpty, !isChangeMasked, eventConfiguration & 1 << 8 != 0, unsafe !eventRequests.isEmpty else {
      return
    }
    isChangeMasked = true
    let slot = unsafe eventRequests.removeFirst()
    // A notice (2) of changed namespaces (0), to be read from their log page.
    unsafe complete(
      slot, NVMe.Status.success, word0: 2 | UInt32(NVMe.LogPage.changedNamespaces) << 16, reactor.core)
  }

  func configureEvents(_ value: UInt32) {
    eventConfiguration = value
    tellChanges()
  }

  /// The list of changed namespaces, which reading empties unless the host wants to keep it.
  func takeChanges(keeping: Bool) -> [UInt8] {
    let list =
      changed.count > 1024
      ? { () -> [UInt8] in
        var page = LittleEndianPage(4096)
        page.set(NVMe.allNamespaces, at: 0)
        return page.bytes
      }() : IdentifyData.list(Array(changed), above: 0)
    if !keeping {
      changed = []
      isChangeMasked = false
    }
    return list
  }
}
