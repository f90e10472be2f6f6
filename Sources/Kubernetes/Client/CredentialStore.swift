#if canImport(FoundationEssentials)
  import FoundationEssentials
#else
  import Foundation
#endif

/// What proves an identity in one request.
struct RequestCredential: Sendable, Hashable {
  /// The value of the `Authorization` header.
  var authorization: String?
  /// A client certificate and key in PEM.
  var certificate: CertificatePEM?

  struct CertificatePEM: Sendable, Hashable {
    var chain: String
    var key: String
  }
}

/// Gives out credentials and renews them: token files once a minute, exec plugins when they expire.
actor CredentialStore {
  /// How long before its end a credential counts as expired, for slow requests and differing clocks.
  private static let expiryMargin: TimeInterval = 10
  private static let tokenFileAge: Duration = .seconds(60)

  private struct Entry {
    var credential: RequestCredential
    /// When to look again, by the local clock.
    var validUntil: ContinuousClock.Instant?
    /// When the issuer says that it ends.
    var expiration: Date?
  }

  private let configuration: ClientConfiguration
  private var cached: Entry?
  /// The one renewal that is under way; others wait for it instead of starting a second one.
  private var waiters: [CheckedContinuation<Void, Never>] = []
  private var isRenewing = false

  init(configuration: ClientConfiguration) { self.configuration = configuration }

  /// The credential to use now.
  /// - Parameter rejected: The credential that the server just refused: where it is still the cached one, it is
  ///   renewed.
  func credential(rejected: RequestCredential? = nil) async throws -> RequestCredential {
    var mayReuseRejected = false
    while true {
      if let cached, isFresh(cached), mayReuseRejected || cached.credential != rejected { return cached.credential }
      guard isRenewing else { break }
      await withCheckedContinuation { waiters.append($0) }
      mayReuseRejected = true
    }
    isRenewing = true
    defer {
      isRenewing = false
      for waiter in waiters { waiter.resume() }
      waiters.removeAll()
    }
    let fresh = try await load()
    if let authorization = fresh.credential.authorization {
      // The HTTP client would refuse it too, but name it in its error.
      guard authorization.utf8.allSatisfy({ $0 >= 0x20 && $0 != 0x7F }) else {
        throw KubernetesError(
          code: .configuration, operation: "use credentials", message: "the token or password has control characters")
      }
    }
    cached = fresh
    return fresh.credential
  }

  private func isFresh(_ entry: Entry) -> Bool {
    if let validUntil = entry.validUntil, ContinuousClock.now >= validUntil { return false }
    if let expiration = entry.expiration, Date().addingTimeInterval(Self.expiryMargin) >= expiration { return false }
    return true
  }

  private func load() async throws -> Entry {
    var credential = RequestCredential()
    if let certificate = configuration.clientCertificate {
      credential.certificate = .init(
        chain: try certificate.chain.pem(operation: "read the client certificate"),
        key: try certificate.key.pem(operation: "read the client key"))
    }
    switch configuration.credential {
    case .none:
      return Entry(credential: credential)
    case .token(let token):
      credential.authorization = "Bearer \(token)"
      return Entry(credential: credential)
    case .basic(let username, let password):
      credential.authorization = "Basic \(Data("\(username):\(password)".utf8).base64EncodedString())"
      return Entry(credential: credential)
    case .tokenFile(let path):
      let token: String
      do {
        token = try TextFile.read(path, maximumBytes: 1 << 20).trimmingWhitespace()
      } catch {
        // While a token is rotated, its file may be missing for a moment: the last one still holds.
        if var last = cached {
          last.validUntil = .now + .seconds(10)
          return last
        }
        throw KubernetesError(
          code: .configuration, operation: "read the token file", message: "\(error)", cause: error)
      }
      guard !token.isEmpty else {
        throw KubernetesError(code: .configuration, operation: "read the token file", message: "\(path) is empty")
      }
      credential.authorization = "Bearer \(token)"
      return Entry(credential: credential, validUntil: .now + Self.tokenFileAge)
    case .exec(let plugin):
      let answer = try await ExecCredential.run(plugin, configuration: configuration)
      if let token = answer.token { credential.authorization = "Bearer \(token)" }
      if let chain = answer.clientCertificatePEM, let key = answer.clientKeyPEM {
        credential.certificate = .init(chain: chain, key: key)
      }
      return Entry(credential: credential, expiration: answer.expiration?.date)
    }
  }
}
