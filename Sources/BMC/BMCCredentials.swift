/// A BMC account. Its description and its mirror never show the password.
public struct BMCCredentials: Sendable, Hashable, CustomStringConvertible, CustomDebugStringConvertible,
  CustomReflectable
{
  public let username: String
  public let password: String

  public init(username: String, password: String) {
    self.username = username
    self.password = password
  }

  public var description: String { "\(username):<redacted>" }
  public var debugDescription: String { description }
  public var customMirror: Mirror { Mirror(self, children: ["username": username]) }
}

/// Which certificate of a BMC is accepted.
public enum BMCTrust: Sendable, Hashable {
  /// One that a certificate authority of the system signed.
  case systemRoots
  /// One that these authorities (PEM, may hold several) signed; also a self-signed certificate itself.
  case authorities(pem: String)
  /// Any: the connection is encrypted, but the BMC may be somebody else.
  case insecureSkipVerify
}
