import Logging
import Synchronization

/// A vhost-user-blk controller: a socket that one front end at a time connects to, and the volume behind it.
///
/// SAFETY: constants, a mutex, and members that only the reactor's thread touches.
@safe
final class VhostController: @unchecked Sendable {
  let name: String
  let path: String
  let device: BlockDevice
  let isReadOnly: Bool
  let reactor: Reactor
  private let logger: Logger
  private let connected = Mutex(false)
  private let retiring = Mutex(false)

  /// Reactor's thread. A front end that comes while another is connected waits until that one is gone.
  private let frontEnds: ListeningSocket

  /// - Parameter listener: a listening, non-blocking socket, which the controller takes over.
  init(
    name: String, path: String, device: BlockDevice, isReadOnly: Bool, reactor: Reactor, listener: CInt, logger: Logger
  ) {
    self.name = name
    self.path = path
    self.device = device
    self.isReadOnly = isReadOnly
    self.reactor = reactor
    var logger = logger
    logger[metadataKey: "controller"] = "\(name)"
    self.logger = logger
    frontEnds = ListeningSocket(
      listener, reactor: reactor, limits: ConnectionLimits(connections: 1, handshakeTime: nil), surplus: .waits,
      logger: logger)
  }

  /// Whether a front end is connected. Any thread.
  var isConnected: Bool { connected.withLock { $0 } }

  /// Whether a delete is under way, which waits for the front end. Any thread.
  var isRetiring: Bool { retiring.withLock { $0 } }

  private var session: VhostSession? { frontEnds.connections.first as? VhostSession }

  /// Begins to accept.
  func start() {
    reactor.post { [self] in
      frontEnds.start { [unowned self] fd in
        logger.info("front end connected")
        connected.withLock { $0 = true }
        return VhostSession(
          name: name, reactor: reactor, device: device, isReadOnly: isReadOnly, fd: fd, logger: logger,
          onClosed: { [unowned self] session in
            connected.withLock { $0 = false }
            frontEnds.ended(session)
          })
      }
    }
  }

  /// Takes no new front end, and calls `then` when there is none any more.
  func retire(then: @escaping @Sendable () -> Void) {
    retiring.withLock { $0 = true }
    reactor.post { [self] in
      frontEnds.stop { [self] in
        reactor.ledger.forget(controller: name)
        then()
      }
    }
  }

  /// Ends the connection to the front end, lets its requests finish, and calls `then`.
  func close(then: @escaping @Sendable () -> Void) {
    retiring.withLock { $0 = true }
    reactor.post { [self] in frontEnds.close("the data plane stops", then: then) }
  }

  /// Tells the front end that the volume has another size.
  func announceConfiguration() {
    reactor.post { [self] in session?.announceConfiguration() }
  }
}
