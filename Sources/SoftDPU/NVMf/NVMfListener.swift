import CLinux
import Dispatch
import Glibc
import Logging
import Synchronization

/// An address where hosts connect, and their connections and controllers.
///
/// SAFETY: constants, and members that only the target's reactor touches.
@safe
final class NVMfListener: @unchecked Sendable {
  let place: NVMfTarget.ListenAddress
  unowned let target: NVMfTarget
  private let logger: Logger
  private var listener: CInt
  private var watch: Watch?
  private(set) var connections: [ObjectIdentifier: NVMfConnection] = [:]
  private var onGone: (@Sendable () -> Void)?

  private static let maximumConnections = 4096

  /// Listens. The error is that of the system.
  init(_ place: NVMfTarget.ListenAddress, target: NVMfTarget) throws(SoftDPUError) {
    self.place = place
    self.target = target
    var logger = target.logger
    logger[metadataKey: "nvmf"] = "\(place.address):\(place.port)"
    self.logger = logger
    listener = try TCPSocket.listen(host: place.address, port: place.port)
    if target.isServing { accept() }
  }

  /// Begins to take hosts.
  func accept() {
    target.reactor.post { [self] in
      guard watch == nil, listener >= 0 else { return }
      let watch = Watch(fd: listener) { [unowned self] in acceptAll() }
      self.watch = watch
      unsafe watch.arm(target.reactor.core)
    }
  }

  private func acceptAll() {
    while listener >= 0 {
      let fd = clinux_accept(listener)
      guard fd >= 0 else {
        let error = errno
        guard error != EAGAIN else { return }
        if error == ECONNABORTED { continue }
        logger.error("cannot take a host; trying again", metadata: ["error": "\(systemText(error))"])
        DispatchQueue.global().asyncAfter(deadline: .now() + .seconds(1)) { [weak self] in
          guard let self else { return }
          target.reactor.post { [weak self] in self?.acceptAll() }
        }
        return
      }
      guard connections.count < NVMfListener.maximumConnections, let transport = target.transport else {
        _ = Glibc.close(fd)
        continue
      }
      clinux_tune_tcp(fd)
      let connection = NVMfConnection(fd: fd, listener: self, target: target, transport: transport, logger: logger)
      connections[ObjectIdentifier(connection)] = connection
      connection.start()
    }
  }

  func closed(_ connection: NVMfConnection) {
    connections[ObjectIdentifier(connection)] = nil
    finishIfGone()
  }

  /// Ends everything, and calls `then` when the last connection is gone.
  func close(then: @escaping @Sendable () -> Void) {
    target.reactor.post { [self] in
      onGone = then
      if listener >= 0 {
        watch?.cancel(target.reactor.ring)
        watch = nil
        target.reactor.ring.submit()
        // The watch keeps the socket open for a moment longer: nobody is to connect to it.
        shutdown(listener, CInt(SHUT_RDWR))
        _ = Glibc.close(listener)
        listener = -1
      }
      for connection in connections.values { connection.close("the target stops listening here") }
      finishIfGone()
    }
  }

  private func finishIfGone() {
    guard connections.isEmpty, let then = onGone else { return }
    onGone = nil
    then()
  }
}
