package import JSON

/// How a console is spoken over a WebSocket.
package enum ConsoleProtocol: String, Sendable, Hashable, CaseIterable {
  /// Binary messages are the console's bytes, in both directions; text messages are JSON objects about the session.
  case plain = "console.iaas.yusur.io"
  /// The channels of Kubernetes' exec and attach: the first byte is 0 for what is typed, 1 for the console's bytes, and 2
  /// for words about the session.
  case channels = "v4.channel.k8s.io"

  /// The one to speak, of those that the client offers in its order; plain where it offers none.
  /// - Throws: `APIFailure` 400 where it offers only others.
  package static func choose(_ offered: [String]) throws(APIFailure) -> (ConsoleProtocol, isNamed: Bool) {
    let name = try WebSocketHandshake.choose(offered, known: allCases.map(\.rawValue))
    return (name.flatMap { ConsoleProtocol(rawValue: $0) } ?? .plain, name != nil)
  }
}

/// What is said about a session, besides the console's bytes.
package enum ConsoleNotice: Sendable, Hashable {
  /// First of all: the place of the first byte that follows, and whether it is where the reader left.
  case hello(place: ConsolePlace, resumed: Bool, machine: String)
  /// Bytes that this reader missed.
  case skipped(bytes: UInt64, place: ConsolePlace)
  /// Who types from now on; nil where nobody does.
  case writer(user: String?, isYou: Bool)
  /// What was typed was dropped.
  case refused(reason: String)
  /// Whether the server's line is there.
  case line(isUp: Bool)

  package var json: JSONValue {
    switch self {
    case .hello(let place, let resumed, let machine):
      ["type": "hello", "place": .string(place.description), "resumed": .bool(resumed), "machine": .string(machine)]
    case .skipped(let bytes, let place):
      ["type": "skipped", "bytes": .integer(Int64(clamping: bytes)), "place": .string(place.description)]
    case .writer(let user, let isYou):
      ["type": "writer", "user": user.map { .string($0) } ?? .null, "you": .bool(isYou)]
    case .refused(let reason): ["type": "refused", "reason": .string(reason)]
    case .line(let isUp): ["type": "line", "up": .bool(isUp)]
    }
  }

  /// For people, where there is no JSON; nil for what is not worth a line.
  package var words: String? {
    switch self {
    case .hello: nil
    case .skipped(let bytes, _): "\(bytes) bytes skipped"
    case .writer(_, true): "you have the line"
    case .writer(let user?, false): "\(user) has the line"
    case .writer(nil, false): "nobody has the line"
    case .refused(let reason): reason
    case .line(let isUp): isUp ? nil : "the server's line is away"
    }
  }
}
