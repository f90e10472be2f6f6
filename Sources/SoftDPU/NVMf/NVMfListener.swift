import Logging

/// An address where hosts connect, and their connections.
///
/// SAFETY: constants, and members that only the target's reactor touches.
@safe
final class NVMfListener: @unchecked Sendable {
  let place: NVMfTarget.ListenAddress
  unowned let target: NVMfTarget
  private let logger: Logger
  let hosts: ListeningSocket

  /// Listens. The error is that of the system.
  init(_ place: NVMfTarget.ListenAddress, target: NVMfTarget) throws(SoftDPUError) {
    self.place = place
    self.target = target
    var logger = target.logger
    logger[metadataKey: "nvmf"] = "\(place.address):\(place.port)"
    self.logger = logger
    hosts = ListeningSocket(
      try TCPSocket.listen(host: place.address, port: place.port), reactor: target.reactor,
      limits: target.limits, logger: logger)
    if target.isServing { accept() }
  }

  /// Begins to take hosts.
  func accept() {
    target.reactor.post { [self] in
      hosts.start { [unowned self] fd in
        target.transport.map {
          NVMfConnection(fd: fd, listener: self, target: target, transport: $0, logger: logger)
        }
      }
    }
  }

  /// The connections that are there. On the reactor.
  var connections: [NVMfConnection] { hosts.connections.compactMap { $0 as? NVMfConnection } }

  /// Ends everything, and calls `then` when the last connection is gone.
  func close(then: @escaping @Sendable () -> Void) {
    target.reactor.post { [self] in hosts.close("the target stops listening here", then: then) }
  }
}
