import CLinux
import Dispatch
import Glibc
import Logging
import Synchronization

/// Exports at one address, and the clients that use them.
///
/// SAFETY: constants, a mutex, and members that only the reactor's thread touches.
@safe
final class NBDServer: @unchecked Sendable {
  /// A device under a name.
  struct Export: Sendable {
    var name: String
    var device: BlockDevice
    /// Only clients with TLS get it.
    var requiresTLS = false

    var description: NBDExport {
      // SAFETY: on the reactor's thread, which alone changes the target.
      let shape = unsafe device.target.pointee
      return unsafe NBDExport(
        name: name, size: shape.capacity, blockSize: shape.blockSize, isReadOnly: shape.isReadOnly,
        canTrim: shape.canUnmap && !shape.isReadOnly, canWriteZeroes: shape.canWriteZeroes && !shape.isReadOnly,
        requiresTLS: requiresTLS)
    }
  }

  let address: NBDAddress
  let reactor: Reactor
  /// What all exports of the address have in common; nil without TLS.
  let tls: TLSCredentials?
  /// Reactor's thread, as the next.
  let clients: ListeningSocket
  /// Clients in the middle of a TLS handshake, the oldest first.
  private var handshakes: [NBDConnection] = []
  private let logger: Logger
  private let state = Mutex(State())

  private struct State {
    var exports: [String: Export] = [:]
    /// In order, once somebody has asked.
    var names: [String]?
  }

  /// A handshake holds tens of kilobytes, for clients that nobody knows yet.
  private static let maximumHandshakes = 256

  /// - Parameter listener: a listening, non-blocking socket, which the server takes over.
  init(
    address: NBDAddress, listener: CInt, tls: TLSCredentials?, reactor: Reactor, limits: ConnectionLimits,
    logger: Logger
  ) {
    self.address = address
    self.tls = tls
    self.reactor = reactor
    var logger = logger
    logger[metadataKey: "nbd"] = "\(address)"
    self.logger = logger
    clients = ListeningSocket(listener, reactor: reactor, limits: limits, logger: logger)
  }

  /// In order. Clients that list share one copy.
  var names: [String] {
    state.withLock { state in
      if let names = state.names { return names }
      let names = state.exports.keys.sorted()
      state.names = names
      return names
    }
  }

  /// By name; the empty name is the only export of an address, where there is one only.
  func export(_ name: String) -> Export? {
    state.withLock { state in
      state.exports[name] ?? (name.isEmpty && state.exports.count == 1 ? state.exports.first?.value : nil)
    }
  }

  /// Whether a client that comes now has to begin TLS, or may (the specification's modes of operation).
  var tlsPolicy: NBDHandshake.TLSPolicy {
    guard tls != nil else { return .none }
    return state.withLock { $0.exports.values.allSatisfy(\.requiresTLS) } ? .required : .selective
  }

  func add(_ export: Export) {
    state.withLock { state in
      state.exports[export.name] = export
      state.names = nil
    }
  }

  private func forget(_ name: String) -> Export? {
    state.withLock { state in
      state.names = nil
      return state.exports.removeValue(forKey: name)
    }
  }

  /// Begins to accept.
  func start() {
    reactor.post { [self] in
      clients.start { [unowned self] in NBDConnection(fd: $0, server: self, logger: logger) }
    }
  }

  /// Enters a client that begins a TLS handshake. Where there are too many, the oldest goes: those who mean it are done
  /// within a few round trips. On the reactor, as the next.
  func beginHandshake(_ client: NBDConnection) {
    handshakes.append(client)
    if handshakes.count > NBDServer.maximumHandshakes {
      handshakes[0].close("too many TLS handshakes at a time, and this was the oldest")
    }
  }

  func endHandshake(_ client: NBDConnection) { handshakes.removeAll { $0 === client } }

  /// Takes an export away and ends its clients; calls `then` when they are gone.
  func remove(_ name: String, then: @escaping @Sendable () -> Void) {
    guard let export = forget(name) else { return then() }
    reactor.post { [self] in
      let users = clients.connections.compactMap { $0 as? NBDConnection }.filter { $0.device === export.device }
      for user in users { user.close("the export was removed") }
      waitForGone(users.map(ObjectIdentifier.init), then)
    }
  }

  private func waitForGone(_ users: [ObjectIdentifier], _ then: @escaping @Sendable () -> Void) {
    guard users.contains(where: clients.has) else { return then() }
    DispatchQueue.global().asyncAfter(deadline: .now() + .milliseconds(5)) { [self] in
      reactor.post { [self] in waitForGone(users, then) }
    }
  }

  /// Ends everything, and calls `then` when the last client is gone.
  func close(then: @escaping @Sendable () -> Void) {
    reactor.post { [self] in clients.close("the server stops", then: then) }
  }
}
