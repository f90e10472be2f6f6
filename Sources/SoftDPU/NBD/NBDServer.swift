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

    var description: NBDExport {
      // SAFETY: on the reactor's thread, which alone changes the target.
      let shape = unsafe device.target.pointee
      return unsafe NBDExport(
        name: name, size: shape.capacity, blockSize: shape.blockSize, isReadOnly: shape.isReadOnly,
        canTrim: shape.canUnmap && !shape.isReadOnly, canWriteZeroes: shape.canWriteZeroes && !shape.isReadOnly)
    }
  }

  let address: NBDAddress
  let reactor: Reactor
  private let logger: Logger
  private let exports = Mutex<[String: Export]>([:])

  // Reactor's thread.
  private var listener: CInt
  private var watch: Watch?
  private var connections: [ObjectIdentifier: NBDConnection] = [:]
  private var onGone: (@Sendable () -> Void)?

  /// How many clients one address takes.
  private static let maximumConnections = 4096

  /// - Parameter listener: a listening, non-blocking socket, which the server takes over.
  init(address: NBDAddress, listener: CInt, reactor: Reactor, logger: Logger) {
    self.address = address
    self.listener = listener
    self.reactor = reactor
    var logger = logger
    logger[metadataKey: "nbd"] = "\(address)"
    self.logger = logger
  }

  var names: [String] { exports.withLock { $0.keys.sorted() } }

  /// By name; the empty name is the only export of an address, where there is one only.
  func export(_ name: String) -> Export? {
    exports.withLock { exports in exports[name] ?? (name.isEmpty && exports.count == 1 ? exports.first?.value : nil) }
  }

  func add(_ export: Export) { exports.withLock { $0[export.name] = export } }

  /// Begins to accept.
  func start() {
    reactor.post { [self] in
      let watch = Watch(fd: listener) { [unowned self] in acceptAll() }
      self.watch = watch
      unsafe watch.arm(reactor.core)
    }
  }

  private func acceptAll() {
    while listener >= 0 {
      let fd = clinux_accept(listener)
      guard fd >= 0 else {
        let error = errno
        guard error != EAGAIN else { return }
        if error == ECONNABORTED { continue }
        logger.error("cannot take a client; trying again", metadata: ["error": "\(systemText(error))"])
        DispatchQueue.global().asyncAfter(deadline: .now() + .seconds(1)) { [weak self] in
          guard let self else { return }
          reactor.post { [weak self] in self?.acceptAll() }
        }
        return
      }
      guard connections.count < NBDServer.maximumConnections else {
        _ = Glibc.close(fd)
        continue
      }
      clinux_tune_tcp(fd)
      let connection = NBDConnection(fd: fd, reactor: reactor, server: self, logger: logger)
      connections[ObjectIdentifier(connection)] = connection
      connection.start()
    }
  }

  func closed(_ connection: NBDConnection) {
    connections[ObjectIdentifier(connection)] = nil
    finishIfGone()
  }

  /// Takes an export away and ends its clients; calls `then` when they are gone.
  func remove(_ name: String, then: @escaping @Sendable () -> Void) {
    guard let export = exports.withLock({ $0.removeValue(forKey: name) }) else { return then() }
    reactor.post { [self] in
      let clients = connections.values.filter { $0.device === export.device }
      for client in clients { client.close("the export was removed") }
      waitForGone(clients.map(ObjectIdentifier.init), then)
    }
  }

  private func waitForGone(_ clients: [ObjectIdentifier], _ then: @escaping @Sendable () -> Void) {
    guard clients.contains(where: { connections[$0] != nil }) else { return then() }
    DispatchQueue.global().asyncAfter(deadline: .now() + .milliseconds(5)) { [self] in
      reactor.post { [self] in waitForGone(clients, then) }
    }
  }

  /// Ends everything, and calls `then` when the last client is gone.
  func close(then: @escaping @Sendable () -> Void) {
    reactor.post { [self] in
      onGone = then
      if listener >= 0 {
        watch?.cancel(reactor.ring)
        watch = nil
        reactor.ring.submit()
        // The watch keeps the socket open for a moment longer: nobody is to connect to it.
        shutdown(listener, CInt(SHUT_RDWR))
        _ = Glibc.close(listener)
        listener = -1
      }
      for client in connections.values { client.close("the server stops") }
      finishIfGone()
    }
  }

  private func finishIfGone() {
    guard connections.isEmpty, let then = onGone else { return }
    onGone = nil
    then()
  }
}
