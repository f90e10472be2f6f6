import AsyncHTTPClient
import NIOCore
import NIOPosix
import NIOSSL
import SystemPackage

/// What went wrong below HTTP, in words that a person can act on.
enum TransportFailure {
  static func explain(_ error: any Error) -> String {
    switch error {
    case let error as NIOConnectionError:
      if let first = error.connectionErrors.first { return explain(first.error) }
      return "the name '\(error.host)' cannot be resolved"
    case let error as IOError:
      return "\(Errno(rawValue: error.errnoCode))".lowercasedFirst
    case is SocketAddressError:
      return "its name cannot be resolved"
    case let error as HTTPClientError:
      if error == .remoteConnectionClosed { return "it closed the connection" }
      if error == .connectTimeout { return "no connection within 10 seconds" }
      if error == .tlsHandshakeTimeout { return "no TLS handshake within 10 seconds" }
      return error.shortDescription
    case NIOSSLError.handshakeFailed(let cause):
      return handshake("\(cause)")
    case NIOSSLError.uncleanShutdown:
      return "the connection was cut"
    case let error as NIOSSLExtraError where error == .failedToValidateHostname:
      return "its certificate is for another name; set tls-server-name to the name that it carries"
    default:
      return "\(error)"
    }
  }

  /// BoringSSL's words, as far as they have a common cause.
  private static func handshake(_ text: String) -> String {
    if text.contains("CERTIFICATE_VERIFY_FAILED") {
      return "its certificate is expired, or not signed by the certificate authority of the configuration"
    }
    if text.contains("WRONG_VERSION_NUMBER") || text.contains("HTTP_REQUEST") { return "it does not speak TLS there" }
    if text.contains("ALERT") { return "it refused the TLS handshake, perhaps because of the client certificate" }
    return "the TLS handshake failed: \(text)"
  }
}

extension String {
  fileprivate var lowercasedFirst: String { prefix(1).lowercased() + dropFirst() }
}
