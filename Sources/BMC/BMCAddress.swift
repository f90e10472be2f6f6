/// Where a BMC is and which protocol it speaks.
///
///     redfish+https://host[:port][/redfish/v1/Systems/ID]      (also redfish://)
///     redfish+http://host[:port][/redfish/v1/Systems/ID]
///     ipmi://host[:port][?cipher=3]
///
/// IPv6 hosts stand in brackets. A user name or password in the address is refused: they belong into a secret.
public struct BMCAddress: Sendable, Hashable, Codable, CustomStringConvertible {
  public enum Scheme: String, Sendable, Hashable, Codable {
    case redfishHTTPS = "redfish+https"
    case redfishHTTP = "redfish+http"
    case ipmi = "ipmi"

    /// The port where none is given.
    public var defaultPort: Int {
      switch self {
      case .redfishHTTPS: 443
      case .redfishHTTP: 80
      case .ipmi: 623
      }
    }
  }

  public let scheme: Scheme
  /// Name or address; IPv6 without brackets.
  public let host: String
  public let port: Int
  /// The Redfish resource of the system, for BMCs that have several; nil takes the only one.
  public let systemPath: String?
  /// IPMI cipher suite; 3 where the address does not say.
  public let cipherSuite: Int

  /// The protocol server behind the address: what shares a login, a lock-out and a connection.
  public var endpoint: String {
    "\(scheme.rawValue)://\(host.contains(":") ? "[\(host)]" : host):\(port)"
  }

  public var description: String {
    endpoint + (systemPath ?? "") + (scheme == .ipmi && cipherSuite != 3 ? "?cipher=\(cipherSuite)" : "")
  }

  /// Parses an address; throws `BMCError` with code `address` that says what is wrong.
  public init(_ text: String) throws {
    func invalid(_ reason: String) -> BMCError {
      BMCError(
        .address, operation: "use the BMC address",
        message: reason + "; expected redfish+https://host[:port][/redfish/v1/Systems/ID], redfish+http://... or "
          + "ipmi://host[:port]")
    }
    guard text.utf8.count <= 512 else { throw invalid("it is longer than 512 bytes") }
    guard text.utf8.allSatisfy({ $0 > 0x20 && $0 < 0x7F }) else {
      throw invalid("it has spaces, control or non-ASCII characters")
    }
    guard let separator = text.firstRange(of: "://") else { throw invalid("it has no scheme") }
    let schemeText = text[..<separator.lowerBound].lowercased()
    switch schemeText {
    case "redfish", "redfish+https": scheme = .redfishHTTPS
    case "redfish+http": scheme = .redfishHTTP
    case "ipmi": scheme = .ipmi
    default: throw invalid("its scheme is not known")
    }

    var rest = text[separator.upperBound...]
    guard !rest.contains("#") else { throw invalid("it has a fragment") }
    var query: Substring?
    if let mark = rest.firstIndex(of: "?") {
      query = rest[rest.index(after: mark)...]
      rest = rest[..<mark]
    }
    var path: Substring = ""
    if let slash = rest.firstIndex(of: "/") {
      path = rest[slash...]
      rest = rest[..<slash]
    }
    guard !rest.contains("@") else { throw invalid("it holds a user name; credentials belong into the secret") }
    (host, port) = try BMCAddress.authority(rest, defaultPort: scheme.defaultPort, invalid: invalid)

    while path.hasSuffix("/") { path = path.dropLast() }
    if path.isEmpty || path == "/redfish/v1" || path == "/redfish" {
      systemPath = nil
    } else {
      guard scheme != .ipmi else { throw invalid("an IPMI address has no path") }
      guard path.hasPrefix("/redfish/v1/"), !path.contains("//"), !path.contains("/../") else {
        throw invalid("its path does not start with /redfish/v1/")
      }
      systemPath = String(path)
    }

    var cipher = 3
    if let query {
      guard scheme == .ipmi, query.hasPrefix("cipher="), let number = Int(query.dropFirst(7)), (0...17).contains(number)
      else { throw invalid("its query is not known") }
      cipher = number
    }
    cipherSuite = cipher
  }

  private static func authority(
    _ text: Substring, defaultPort: Int, invalid: (String) -> BMCError
  ) throws -> (String, Int) {
    var host = text
    var portText: Substring?
    if text.hasPrefix("[") {
      guard let end = text.firstIndex(of: "]") else { throw invalid("its IPv6 address has no closing bracket") }
      host = text[text.index(after: text.startIndex)..<end]
      let after = text[text.index(after: end)...]
      if !after.isEmpty {
        guard after.hasPrefix(":") else { throw invalid("something other than a port follows the IPv6 address") }
        portText = after.dropFirst()
      }
      guard host.contains(":"), host.allSatisfy({ $0.isHexDigit || $0 == ":" || $0 == "." || $0 == "%" }) else {
        throw invalid("its IPv6 address is malformed")
      }
    } else {
      if let colon = text.firstIndex(of: ":") {
        host = text[..<colon]
        portText = text[text.index(after: colon)...]
      }
      // A leading '-' would be taken as an option by programs.
      guard host.allSatisfy({ $0.isLetter || $0.isNumber || $0 == "." || $0 == "-" || $0 == "_" }),
        !host.hasPrefix("-")
      else { throw invalid("its host name is malformed") }
    }
    guard !host.isEmpty, host.utf8.count <= 253 else { throw invalid("it has no host") }
    guard let portText else { return (String(host), defaultPort) }
    guard portText.allSatisfy(\.isWholeNumber), let port = Int(portText), (1...65535).contains(port) else {
      throw invalid("its port is not a number from 1 to 65535")
    }
    return (String(host), port)
  }

  public init(from decoder: any Decoder) throws {
    try self.init(decoder.singleValueContainer().decode(String.self))
  }

  public func encode(to encoder: any Encoder) throws {
    var container = encoder.singleValueContainer()
    try container.encode(description)
  }
}
