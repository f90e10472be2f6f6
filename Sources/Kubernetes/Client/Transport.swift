import AsyncHTTPClient
import Logging
import NIOCore
import NIOHTTP1
import NIOPosix
import NIOSSL
import Synchronization

/// Connections to one API server: HTTP/1.1 with TLS, renewed when the client certificate changes.
final class Transport: Sendable {
  /// One thread for all clients of a process. The work is small, and each more thread costs memory.
  static let eventLoopGroup = MultiThreadedEventLoopGroup(numberOfThreads: 1)

  private struct State {
    var current: (client: HTTPClient, certificate: RequestCredential.CertificatePEM?)?
    /// Clients with a former certificate: requests may still be under way in them.
    var retired: [HTTPClient] = []
    var isShutDown = false
  }

  private let configuration: ClientConfiguration
  /// The URL without a path.
  let base: String
  private let dnsOverride: [String: String]
  private let state = Mutex(State())

  init(configuration: ClientConfiguration) throws(KubernetesError) {
    self.configuration = configuration
    let url = try ServerURL(configuration.server)
    if let name = configuration.tlsServerName, !name.isEmpty {
      base = url.text(host: name)
      dnsOverride = [name: url.host]
    } else {
      base = url.text(host: url.host)
      dnsOverride = [:]
    }
  }

  deinit {
    let clients = state.withLock { state in
      defer {
        state.current = nil
        state.retired = []
      }
      return state.retired + (state.current.map { [$0.client] } ?? [])
    }
    for client in clients { client.shutdown { _ in } }
  }

  func shutdown() async throws {
    let clients = state.withLock { state in
      defer {
        state.current = nil
        state.retired = []
        state.isShutDown = true
      }
      return state.retired + (state.current.map { [$0.client] } ?? [])
    }
    for client in clients { try await client.shutdown() }
  }

  /// Sends a request and returns when the head of the response is there.
  func execute(
    _ request: HTTPClientRequest, certificate: RequestCredential.CertificatePEM?, deadline: NIODeadline
  ) async throws -> HTTPClientResponse {
    try await client(certificate).execute(request, deadline: deadline)
  }

  private func client(_ certificate: RequestCredential.CertificatePEM?) throws(KubernetesError) -> HTTPClient {
    let present = state.withLock { state -> HTTPClient? in
      guard let current = state.current, current.certificate == certificate else { return nil }
      return current.client
    }
    if let present { return present }
    let fresh = try makeClient(certificate)
    let (chosen, unused) = state.withLock { state -> (HTTPClient?, [HTTPClient]) in
      if state.isShutDown { return (nil, [fresh]) }
      if let current = state.current {
        if current.certificate == certificate { return (current.client, [fresh]) }
        state.retired.append(current.client)
      }
      state.current = (fresh, certificate)
      // The oldest one had the time of a whole certificate to finish its requests.
      return (fresh, state.retired.count > 1 ? [state.retired.removeFirst()] : [])
    }
    for client in unused { client.shutdown { _ in } }
    guard let chosen else {
      throw KubernetesError(code: .unavailable, operation: "connect", message: "the client is shut down")
    }
    return chosen
  }

  private func makeClient(_ certificate: RequestCredential.CertificatePEM?) throws(KubernetesError) -> HTTPClient {
    let tls = try configuration.tls(certificate)
    var settings = HTTPClient.Configuration(
      tlsConfiguration: tls, redirectConfiguration: .disallow,
      timeout: .init(connect: .seconds(10), read: .nanoseconds(configuration.watchIdleTimeout.inNanoseconds)),
      connectionPool: .init(idleTimeout: .seconds(60), concurrentHTTP1ConnectionsPerHostSoftLimit: 256),
      ignoreUncleanSSLShutdown: false, decompression: .disabled)
    settings.httpVersion = .http1Only
    settings.dnsOverride = dnsOverride
    // A refused connection is an answer: waiting for a better one is the caller's decision.
    settings.connectionPool.retryConnectionEstablishment = false
    settings.http1_1ConnectionDebugInitializer = { channel in Transport.keepAlive(channel) }
    return HTTPClient(eventLoopGroupProvider: .shared(Transport.eventLoopGroup), configuration: settings)
  }

  /// Lets the kernel find out that the other side is gone, also while a watch is silent: this needs no timer here.
  ///
  /// - Parameter givesUpUnsent: whether it also ends where the other side takes nothing for a minute.
  static func keepAlive(_ channel: any Channel, givesUpUnsent: Bool = true) -> EventLoopFuture<Void> {
    var options: [(ChannelOptions.Types.SocketOption, SocketOptionValue)] = [
      (ChannelOptions.socketOption(.so_keepalive), 1)
    ]
    #if os(Linux)
      options += [
        (ChannelOptions.Types.SocketOption(level: .tcp, name: .init(rawValue: 4)), 30),  // TCP_KEEPIDLE
        (ChannelOptions.Types.SocketOption(level: .tcp, name: .init(rawValue: 5)), 10),  // TCP_KEEPINTVL
        (ChannelOptions.Types.SocketOption(level: .tcp, name: .init(rawValue: 6)), 3),  // TCP_KEEPCNT
      ]
      if givesUpUnsent {
        // TCP_USER_TIMEOUT
        options.append((ChannelOptions.Types.SocketOption(level: .tcp, name: .init(rawValue: 18)), 60_000))
      }
    #endif
    let futures = options.map { option, value in
      // A socket that refuses an option still works.
      channel.setOption(option, value: value).recover { _ in () }
    }
    return EventLoopFuture.andAllSucceed(futures, on: channel.eventLoop)
  }
}

extension ClientConfiguration {
  /// How a connection to the server is secured.
  /// - Parameter certificate: what the client shows.
  func tls(_ certificate: RequestCredential.CertificatePEM?) throws(KubernetesError) -> TLSConfiguration {
    var tls = TLSConfiguration.makeClientConfiguration()
    tls.minimumTLSVersion = .tlsv12
    tls.applicationProtocols = ["http/1.1"]
    let operation = "prepare TLS for \(server)"
    do {
      if let authority = certificateAuthority {
        let pem = try authority.pem(operation: operation)
        tls.trustRoots = .certificates(try NIOSSLCertificate.fromPEMBytes(Array(pem.utf8)))
      }
      if insecureSkipTLSVerify { tls.certificateVerification = .none }
      if let certificate {
        tls.certificateChain = try NIOSSLCertificate.fromPEMBytes(Array(certificate.chain.utf8))
          .map { .certificate($0) }
        tls.privateKey = .privateKey(try NIOSSLPrivateKey(bytes: Array(certificate.key.utf8), format: .pem))
      }
    } catch let error as KubernetesError {
      throw error
    } catch {
      throw KubernetesError(
        code: .configuration, operation: operation,
        message: "the certificate authority, client certificate or key is not valid PEM: \(error)", cause: error)
    }
    return tls
  }
}

/// The parts of an API server's URL.
package struct ServerURL {
  package let scheme: String
  /// Name or address; an IPv6 address without its brackets.
  package let host: String
  package let port: Int?
  /// A prefix of all paths, for servers behind a proxy; without a slash at its end.
  package let path: String

  package init(_ text: String) throws(KubernetesError) {
    func failure(_ message: String) -> KubernetesError {
      KubernetesError(code: .configuration, operation: "use server '\(text)'", message: message)
    }
    let address = text.contains("://") ? text : "https://\(text)"
    guard let separator = address.firstRange(of: "://") else { throw failure("it is no URL") }
    scheme = address[..<separator.lowerBound].lowercased()
    guard scheme == "https" || scheme == "http" else { throw failure("only https and http are supported") }
    let rest = address[separator.upperBound...]
    let authority = rest.prefix { $0 != "/" }
    var path = String(rest.dropFirst(authority.count))
    while path.hasSuffix("/") { path.removeLast() }
    self.path = path
    if authority.hasPrefix("[") {
      guard let end = authority.firstIndex(of: "]") else { throw failure("an IPv6 address needs brackets") }
      host = String(authority[authority.index(after: authority.startIndex)..<end])
      let suffix = authority[authority.index(after: end)...]
      port = suffix.isEmpty ? nil : Int(suffix.dropFirst())
      guard suffix.isEmpty || (suffix.first == ":" && port != nil) else { throw failure("its port is no number") }
    } else if let colon = authority.lastIndex(of: ":") {
      host = String(authority[..<colon])
      port = Int(authority[authority.index(after: colon)...])
      guard port != nil else { throw failure("its port is no number") }
    } else {
      host = String(authority)
      port = nil
    }
    guard !host.isEmpty, port.map({ (1...65_535).contains($0) }) ?? true else { throw failure("it has no valid host") }
  }

  package func text(host: String) -> String {
    let name = host.contains(":") ? "[\(host)]" : host
    return "\(scheme)://\(name)\(port.map { ":\($0)" } ?? "")\(path)"
  }
}
