import Crypto
import JSON
package import Kubernetes
import Synchronization

/// What proves who calls, in one request.
package struct Proof: Sendable {
  /// The certificate that the peer showed in the TLS handshake, in DER.
  package var certificate: [UInt8]?
  package var headers: [(name: String, value: String)]

  package init(certificate: [UInt8]?, headers: [(name: String, value: String)]) {
    self.certificate = certificate
    self.headers = headers
  }

  var bearerToken: String? {
    let values = headers.filter { $0.name.lowercased() == "authorization" }.map(\.value)
    guard values.count == 1, let value = values.first, value.lowercased().hasPrefix("bearer ") else { return nil }
    let token = value.dropFirst(7).drop { $0 == " " }
    return token.isEmpty ? nil : String(token)
  }
}

/// Who calls, and whether it is the front proxy that says so.
package struct Caller: Sendable, Hashable {
  package var identity: Identity
  package var isProxied: Bool
}

/// Finds out who calls: the front proxy for somebody, or somebody with a client certificate or a bearer token.
package final class Authenticator: Sendable {
  /// How long an answer of the API server about a token holds.
  private static let tokenLifetime: Duration = .seconds(10)

  private let client: KubernetesClient
  private let trust = Mutex<TrustSettings?>(nil)
  private let tokens = ExpiringCache<[UInt8], Identity>(limit: 1024)
  private let certificates = ExpiringCache<CertificateKey, CertificateSubject>(limit: 1024)

  private struct CertificateKey: Hashable {
    var certificate: [UInt8]
    var authorities: String
  }

  package init(client: KubernetesClient) { self.client = client }

  /// nil until the first settings are there: then nobody is believed.
  package var settings: TrustSettings? {
    get { trust.withLock { $0 } }
    set { trust.withLock { $0 = newValue } }
  }

  /// - Throws: `APIFailure` 401 where nobody is proven, 503 where it cannot be found out now.
  package func caller(of proof: Proof) async throws -> Caller {
    guard let settings else {
      throw APIFailure.unavailable(
        "bm-api does not know yet whom to believe: it waits for the ConfigMap "
          + "\(TrustSettings.namespace)/\(TrustSettings.configMap)")
    }
    if let certificate = proof.certificate {
      if let proxy = await subject(of: certificate, signedBy: settings.proxyAuthorities),
        settings.proxyNames.isEmpty || settings.proxyNames.contains(proxy.commonName),
        let identity = settings.identity(headers: proof.headers)
      {
        return Caller(identity: identity.complete, isProxied: true)
      }
      if let user = await subject(of: certificate, signedBy: settings.clientAuthorities) {
        return Caller(
          identity: Identity(user: user.commonName, groups: user.organizations).complete, isProxied: false)
      }
    }
    if let token = proof.bearerToken, let identity = try await review(token) {
      return Caller(identity: identity.complete, isProxied: false)
    }
    throw APIFailure(
      401, "Unauthorized",
      "no certificate or token proves who calls; call through the API server, or with a certificate or token of its users"
    )
  }

  private func subject(of certificate: [UInt8], signedBy authorities: String) async -> CertificateSubject? {
    let key = CertificateKey(certificate: certificate, authorities: authorities)
    if let known = certificates[key] { return known }
    guard let subject = await CertificateCheck.subject(ofCertificate: certificate, signedBy: authorities) else {
      return nil
    }
    // Shorter than people notice: a certificate expires while a connection lasts.
    certificates.store(subject, for: key, lasting: .seconds(30))
    return subject
  }

  /// Asks the API server whose token it is; nil where it is nobody's.
  private func review(_ token: String) async throws -> Identity? {
    let digest = Array(SHA256.hash(data: Array(token.utf8)))
    if let known = tokens[digest] { return known }
    let answer: JSONValue
    do {
      answer = try await client.review(
        "/apis/authentication.k8s.io/v1/tokenreviews",
        [
          "apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": ["token": .string(token)],
        ])
    } catch is KubernetesError {
      throw APIFailure.unavailable("the API server cannot be asked whose token it is; try again")
    }
    guard answer["status"]?["authenticated"]?.boolValue == true, let user = answer["status"]?["user"],
      let name = user["username"]?.stringValue, !name.isEmpty
    else { return nil }
    let identity = Identity(
      user: name, uid: user["uid"]?.stringValue, groups: (user["groups"]?.arrayValue ?? []).compactMap(\.stringValue),
      extra: (user["extra"]?.objectValue ?? [:]).mapValues { ($0.arrayValue ?? []).compactMap(\.stringValue) })
    tokens.store(identity, for: digest, lasting: Self.tokenLifetime)
    return identity
  }
}

extension KubernetesClient {
  /// Posts a review, which changes nothing, and so is sent again where an idle connection was just closed.
  func review(_ path: String, _ body: JSONValue) async throws -> JSONValue {
    do {
      return try await request(method: "POST", path: path, body: body)
    } catch let error as KubernetesError {
      guard error.code == .unavailable, error.httpStatus == nil else { throw error }
      return try await request(method: "POST", path: path, body: body)
    }
  }
}
