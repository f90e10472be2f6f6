import CLinux
import Dispatch
import Glibc
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

  // Reactor's thread.
  private var listener: CInt
  private var watch: Watch?
  private var session: VhostSession?
  private var onGone: [@Sendable () -> Void] = []
  private var isClosing = false

  /// - Parameter listener: a listening, non-blocking socket, which the controller takes over.
  init(
    name: String, path: String, device: BlockDevice, isReadOnly: Bool, reactor: Reactor, listener: CInt, logger: Logger
  ) {
    self.name = name
    self.path = path
    self.device = device
    self.isReadOnly = isReadOnly
    self.reactor = reactor
    self.listener = listener
    var logger = logger
    logger[metadataKey: "controller"] = "\(name)"
    self.logger = logger
  }

  /// Whether a front end is connected. Any thread.
  var isConnected: Bool { connected.withLock { $0 } }

  /// Whether a delete is under way, which waits for the front end. Any thread.
  var isRetiring: Bool { retiring.withLock { $0 } }

  /// Begins to accept.
  func start() {
    reactor.post { [self] in
      let watch = Watch(fd: listener) { [unowned self] in acceptNext() }
      self.watch = watch
      unsafe watch.arm(reactor.core)
    }
  }

  /// Takes no new front end, and calls `then` when there is none any more.
  func retire(then: @escaping @Sendable () -> Void) {
    retiring.withLock { $0 = true }
    reactor.post { [self] in
      onGone.append(then)
      stopListening()
      if session == nil { gone() }
    }
  }

  /// Ends the connection to the front end, lets its requests finish, and calls `then`.
  func close(then: @escaping @Sendable () -> Void) {
    retire(then: then)
    reactor.post { [self] in session?.close("the data plane stops") }
  }

  /// Tells the front end that the volume has another size.
  func announceConfiguration() {
    reactor.post { [self] in session?.announceConfiguration() }
  }

  private func stopListening() {
    isClosing = true
    guard listener >= 0 else { return }
    watch?.cancel(reactor.ring)
    watch = nil
    reactor.ring.submit()
    // The watch keeps the socket open for a moment longer: nobody is to connect to it.
    shutdown(listener, CInt(SHUT_RDWR))
    _ = Glibc.close(listener)
    listener = -1
  }

  private func gone() {
    let callbacks = onGone
    onGone = []
    for callback in callbacks { callback() }
  }

  private func acceptNext() {
    guard session == nil, !isClosing else { return }
    // A front end that comes while another is connected waits in the backlog until that one is gone.
    let fd = clinux_accept(listener)
    guard fd >= 0 else {
      let error = errno
      guard error != EAGAIN, error != ECONNABORTED else { return }
      // The connection stays in the backlog, and nothing announces it again.
      logger.error("cannot take a front end; trying again", metadata: ["error": "\(systemText(error))"])
      DispatchQueue.global().asyncAfter(deadline: .now() + .seconds(1)) { [weak self] in
        guard let self else { return }
        reactor.post { [weak self] in self?.acceptNext() }
      }
      return
    }
    logger.info("front end connected")
    let session = VhostSession(
      name: name, reactor: reactor, device: device, isReadOnly: isReadOnly, fd: fd, logger: logger,
      onClosed: { [unowned self] in
        self.session = nil
        connected.withLock { $0 = false }
        if isClosing { gone() } else { acceptNext() }
      })
    self.session = session
    connected.withLock { $0 = true }
    session.start()
  }
}
