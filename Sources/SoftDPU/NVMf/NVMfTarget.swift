import Dispatch
import Glibc
import Logging
import Synchronization

/// What is shown to hosts over NVMe/TCP: subsystems with their namespaces, the hosts that may use them, and where they
/// are listened for. Changed by the RPC server's queue; connections read it when they connect and identify.
///
/// All connections are served by one reactor; devices of other reactors are reached through theirs.
final class NVMfTarget: Sendable {
  /// A namespace of a subsystem.
  struct Namespace: Sendable {
    var id: UInt32
    var device: BlockDevice
    var nguid: [UInt8]
    var eui64: [UInt8]
    var uuid: String
    /// What the client gave, for the configuration.
    var given: NamespaceIdentity
    /// Stands for the namespace among the device's users.
    let owner = Owner()

    final class Owner: Sendable {}
  }

  struct Subsystem: Sendable {
    var nqn: String
    var serialNumber: String
    var modelNumber: String
    var maximumNamespaces: UInt32
    /// The numbers that its controllers get.
    var controllerIDs = NVMfControllers.allIDs
    var allowsAnyHost: Bool
    var hosts: [String] = []
    var namespaces: [UInt32: Namespace] = [:]
    /// In the order in which they were added.
    var listeners: [ListenAddress] = []
    let table: NamespaceTable

    func allows(_ host: String) -> Bool { allowsAnyHost || hosts.contains(host) }
  }

  /// Where hosts connect to.
  struct ListenAddress: Sendable, Hashable {
    var address: String
    var port: UInt16
    var isIPv6: Bool { address.contains(":") }
  }

  /// What `nvmf_create_transport` sets.
  struct Transport: Sendable, Hashable {
    var queueDepth = 128
    var maximumQueues = 127
    var inCapsuleLength = 4096
    var maximumTransfer = 131_072
    var sendsSuccess = true
  }

  struct State {
    var transport: Transport?
    var subsystems: [String: Subsystem] = [:]
    /// In the order in which they were made.
    var order: [String] = []
    var listeners: [ListenAddress: NVMfListener] = [:]
    var generation: UInt64 = 0
    var controllers = NVMfControllers()
  }

  let reactor: Reactor
  let limits: ConnectionLimits
  let logger: Logger
  private let state = Mutex(State())

  init(reactor: Reactor, limits: ConnectionLimits, logger: Logger) {
    self.reactor = reactor
    self.limits = limits
    self.logger = logger
  }

  /// What was connected since the start, and what has been done. On the reactor.
  struct Statistics: Sendable {
    var adminQueues: UInt64 = 0
    var ioQueues: UInt64 = 0
    /// Of connections that are gone.
    var commands: UInt64 = 0
  }

  private let serving = Mutex(false)
  /// Whether hosts are let in: not before all that was written down is there again.
  var isServing: Bool { serving.withLock { $0 } }

  /// Lets hosts in.
  func open() {
    serving.withLock { $0 = true }
    for listener in listeners { listener.accept() }
  }

  private let past = Mutex(Statistics())

  /// With the connections that are there. On the reactor.
  var statistics: Statistics {
    var value = past.withLock { $0 }
    for listener in listeners {
      for connection in listener.connections { value.commands &+= connection.commands }
    }
    return value
  }

  func record(_ body: (inout Statistics) -> Void) { past.withLock { body(&$0) } }

  var transport: Transport? { state.withLock { $0.transport } }
  var subsystems: [Subsystem] { state.withLock { state in state.order.compactMap { state.subsystems[$0] } } }
  func subsystem(_ nqn: String) -> Subsystem? { state.withLock { $0.subsystems[nqn] } }
  var listeners: [NVMfListener] { state.withLock { Array($0.listeners.values) } }
  var generation: UInt64 { state.withLock { $0.generation } }

  func change<Value>(_ body: (inout sending State) -> sending Value) -> sending Value {
    state.withLock { state in
      state.generation &+= 1
      return body(&state)
    }
  }

  // MARK: Controllers

  var controllers: [NVMfController] { state.withLock { $0.controllers.all } }
  func controller(_ id: UInt16, of nqn: String) -> NVMfController? { state.withLock { $0.controllers[nqn, id] } }
  func keep(_ controller: NVMfController) {
    state.withLock { $0.controllers[controller.subsystemNQN, controller.id] = controller }
  }
  func forget(_ controller: NVMfController) {
    state.withLock { $0.controllers[controller.subsystemNQN, controller.id] = nil }
  }

  /// A number that no controller of the subsystem has, or nil where all are taken.
  func freeControllerID(of nqn: String, in range: ClosedRange<UInt16>) -> UInt16? {
    state.withLock { $0.controllers.takeFreeID(of: nqn, in: range) }
  }

  /// The ways that a host may see.
  func discoveryEntries(for host: String, at place: ListenAddress) -> [IdentifyData.DiscoveryEntry] {
    var entries = [
      IdentifyData.DiscoveryEntry(
        subsystemNQN: NVMe.discoveryNQN, isDiscovery: true, address: place.address, port: place.port,
        isIPv6: place.isIPv6, portID: 0)
    ]
    for subsystem in subsystems where subsystem.allows(host) {
      for (index, listener) in subsystem.listeners.enumerated() {
        entries.append(
          IdentifyData.DiscoveryEntry(
            subsystemNQN: subsystem.nqn, isDiscovery: false, address: listener.address, port: listener.port,
            isIPv6: listener.isIPv6, portID: UInt16(clamping: index)))
      }
    }
    return entries
  }

  /// Ends all connections, and calls `then`.
  func close(then: @escaping @Sendable () -> Void) {
    let group = DispatchGroup()
    for listener in listeners {
      group.enter()
      listener.close { group.leave() }
    }
    group.notify(queue: .global(), execute: then)
  }
}

/// The devices behind a subsystem's namespaces, as the hot path needs them.
///
/// SAFETY: allocated with its subsystem and kept by every connection to it; touched on the target's reactor only.
@safe
final class NamespaceTable: @unchecked Sendable {
  @unsafe
  struct Entry {
    var target: UnsafeMutablePointer<BlockTarget>?
    /// Requests that were started and are not finished.
    var inflight = 0
  }

  let entries: UnsafeMutablePointer<Entry>
  let count: Int

  init(count: Int) {
    self.count = count
    unsafe entries = .allocate(capacity: count + 1)
    unsafe entries.initialize(repeating: Entry(), count: count + 1)
  }

  deinit { unsafe entries.deallocate() }

  /// The entry of a namespace that is there.
  @inline(__always)
  func entry(_ id: UInt32) -> UnsafeMutablePointer<Entry>? {
    guard id > 0, id <= UInt32(count), unsafe entries[Int(id)].target != nil else { return nil }
    return unsafe entries + Int(id)
  }

  func set(_ id: UInt32, _ device: BlockDevice?) { unsafe entries[Int(id)].target = unsafe device?.target }

  func isIdle(_ id: UInt32) -> Bool { unsafe entries[Int(id)].inflight == 0 }
}
