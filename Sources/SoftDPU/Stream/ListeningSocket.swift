import CLinux
import Glibc
import Logging

/// A connection that came to a listening socket.
protocol AcceptedConnection: AnyObject {
  func start()
  /// The time is over that a connection has to choose what it wants: one that has not is to end.
  func timeIsOver()
  /// Ends it; it tells its socket with `ended` when nothing of it is left.
  func close(_ reason: String)
}

/// What an address grants to those who connect.
struct ConnectionLimits: Sendable, Hashable {
  /// How many connections it has at a time; those beyond are refused.
  var connections = 4096
  /// How long a connection may take until it has chosen what it wants, in nanoseconds; nil for ever.
  var handshakeTime: UInt64? = 30_000_000_000
}

/// What to do after accept(2) has failed.
package enum AcceptFailure: Sendable, Hashable {
  /// Wait until the socket tells of another connection.
  case nothingWaits
  /// Take the next one: this failure was of one connection.
  case takeNext
  /// Leave the connections where they are for a moment: what is missing, descriptors or memory, has to come back.
  case pause

  package init(_ error: CInt) {
    switch error {
    case EAGAIN: self = .nothingWaits
    case ECONNABORTED, EPROTO, EPERM, ENETDOWN, ENETUNREACH, EHOSTDOWN, EHOSTUNREACH, ENONET, ENOPROTOOPT, EINTR:
      self = .takeNext
    default: self = .pause
    }
  }
}

/// A listening socket and the connections that came to it.
///
/// SAFETY: constants, and members that only the reactor's thread touches; the watch and the timer go before the object.
@safe
final class ListeningSocket: @unchecked Sendable {
  /// What becomes of a connection beyond the limit.
  enum Surplus { case isRefused, waits }

  private let reactor: Reactor
  private let logger: Logger
  private let limits: ConnectionLimits
  private let surplus: Surplus
  private var fd: CInt
  private var watch: Watch?
  private var make: (CInt) -> (any AcceptedConnection)? = { _ in nil }
  private var present: [ObjectIdentifier: Entry] = [:]
  /// Connections whose time runs, in the order of their deadlines; those before `firstArrival` are done with. One timer
  /// for all of them: thousands that end together must not each look for a timer of their own.
  private var arrivals: [Arrival] = []
  private var firstArrival = 0
  private var arrivalNumber: UInt64 = 0
  private var hasTimer = false
  private var onGone: [@Sendable () -> Void] = []
  /// The system has no descriptor or no memory: nothing is taken until a timer says so.
  private var isPaused = false
  /// It had none the last time, which was told.
  private var isStarved = false
  /// Connections are being refused, which was told.
  private var isRefusing = false

  private struct Entry {
    let connection: any AcceptedConnection
    /// Tells it from a later one at the same address in memory.
    let number: UInt64
  }

  private struct Arrival {
    let deadline: UInt64
    let number: UInt64
    let connection: ObjectIdentifier
  }

  /// Others have their turn after so many.
  private static let acceptsPerTurn = 64
  private static let pauseTime: UInt64 = 1_000_000_000

  /// - Parameter fd: a listening, non-blocking socket, which this takes over.
  init(
    _ fd: CInt, reactor: Reactor, limits: ConnectionLimits, surplus: Surplus = .isRefused, logger: Logger
  ) {
    self.fd = fd
    self.reactor = reactor
    self.limits = limits
    self.surplus = surplus
    self.logger = logger
  }

  /// The connections that are there, in no order.
  var connections: [any AcceptedConnection] { present.values.map(\.connection) }

  func has(_ connection: ObjectIdentifier) -> Bool { present[connection] != nil }

  /// Begins to accept; the second time it does nothing. On the reactor, as all below.
  ///
  /// - Parameter make: makes a connection of a socket, or leaves it alone, which refuses it.
  func start(_ make: @escaping (CInt) -> (any AcceptedConnection)?) {
    guard watch == nil, fd >= 0 else { return }
    self.make = make
    let watch = Watch(fd: fd) { [unowned self] in acceptWaiting() }
    self.watch = watch
    unsafe watch.arm(reactor.core)
  }

  private func acceptWaiting() {
    for _ in 0..<ListeningSocket.acceptsPerTurn {
      guard fd >= 0, !isPaused else { return }
      let isFull = present.count >= limits.connections
      if isFull, surplus == .waits { return }
      let socket = clinux_accept(fd)
      guard socket >= 0 else {
        let error = errno
        switch AcceptFailure(error) {
        case .nothingWaits: return
        case .takeNext: continue
        case .pause: return pause(error)
        }
      }
      isStarved = false
      if isFull != isRefusing {
        isRefusing = isFull
        if isFull { logger.warning("refusing connections", metadata: ["connections": "\(present.count)"]) }
      }
      guard !isFull, let connection = make(socket) else {
        _ = Glibc.close(socket)
        continue
      }
      clinux_tune_tcp(socket)
      arrivalNumber &+= 1
      present[ObjectIdentifier(connection)] = Entry(connection: connection, number: arrivalNumber)
      if let time = limits.handshakeTime { limitTime(ObjectIdentifier(connection), time) }
      connection.start()
    }
    reactor.post { [weak self] in self?.acceptWaiting() }
  }

  /// What waits is not announced again, so a timer has to look; without one the failure would come again at once.
  private func pause(_ error: CInt) {
    isPaused = true
    if !isStarved {
      logger.error("cannot take a connection; trying again", metadata: ["error": "\(systemText(error))"])
    }
    isStarved = true
    unsafe reactor.core.pointee.schedule(
      at: clinux_monotonic_nanoseconds() &+ ListeningSocket.pauseTime,
      { socket, _ in
        unsafe Unmanaged<ListeningSocket>.fromOpaque(socket)._withUnsafeGuaranteedRef { socket in
          socket.isPaused = false
          socket.acceptWaiting()
        }
      }, Unmanaged.passUnretained(self).toOpaque())
  }

  // MARK: Time

  private func limitTime(_ connection: ObjectIdentifier, _ time: UInt64) {
    // Those that are gone are swept out as often as they are as many as the others.
    if arrivals.count > 2 * present.count + 64 {
      arrivals = arrivals[firstArrival...].filter { present[$0.connection]?.number == $0.number }
      firstArrival = 0
    }
    arrivals.append(
      Arrival(
        deadline: clinux_monotonic_nanoseconds() &+ time, number: arrivalNumber, connection: connection))
    if !hasTimer { setTimer() }
  }

  private func setTimer() {
    hasTimer = firstArrival < arrivals.count
    guard hasTimer else {
      arrivals = []
      firstArrival = 0
      return
    }
    unsafe reactor.core.pointee.schedule(
      at: arrivals[firstArrival].deadline,
      { socket, _ in
        unsafe Unmanaged<ListeningSocket>.fromOpaque(socket)._withUnsafeGuaranteedRef { $0.timeIsOver() }
      }, Unmanaged.passUnretained(self).toOpaque())
  }

  private func timeIsOver() {
    let now = clinux_monotonic_nanoseconds()
    while firstArrival < arrivals.count, arrivals[firstArrival].deadline <= now {
      let arrival = arrivals[firstArrival]
      firstArrival += 1
      if let entry = present[arrival.connection], entry.number == arrival.number { entry.connection.timeIsOver() }
    }
    setTimer()
  }

  // MARK: The end

  /// Forgets a connection that is gone.
  func ended(_ connection: any AcceptedConnection) {
    present[ObjectIdentifier(connection)] = nil
    if surplus == .waits { acceptWaiting() }
    finishIfGone()
  }

  /// Takes no more connections, and calls `then` when none is left.
  func stop(then: @escaping @Sendable () -> Void) {
    onGone.append(then)
    if fd >= 0 {
      watch?.cancel(reactor.ring)
      watch = nil
      make = { _ in nil }
      unsafe reactor.core.pointee.forget(Unmanaged.passUnretained(self).toOpaque())
      reactor.ring.submit()
      // The watch keeps the socket open for a moment longer: nobody is to connect to it.
      shutdown(fd, CInt(SHUT_RDWR))
      _ = Glibc.close(fd)
      fd = -1
    }
    finishIfGone()
  }

  /// Ends everything, and calls `then` when the last connection is gone.
  func close(_ reason: String, then: @escaping @Sendable () -> Void) {
    let last = connections
    stop(then: then)
    for connection in last { connection.close(reason) }
  }

  private func finishIfGone() {
    guard present.isEmpty, fd < 0 else { return }
    let callbacks = onGone
    onGone = []
    for callback in callbacks { callback() }
  }
}
