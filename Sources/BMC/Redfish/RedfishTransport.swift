import AsyncHTTPClient
import Deadlines
import JSON
import NIOCore
import NIOHTTP1
import NIOSSL

/// Sends single requests to one Redfish service and gives its answers or a `BMCError`; knows nothing of sessions.
struct RedfishTransport: Sendable {
  enum Authorization: Sendable {
    case none
    case basic(BMCCredentials)
    case token(String)
  }

  private let http: HTTPClient
  private let base: String
  private let tls: TLSConfiguration?
  private let limits: BMCLimits

  init(address: BMCAddress, trust: BMCTrust, http: HTTPClient, limits: BMCLimits) throws {
    self.http = http
    self.limits = limits
    let host = address.host.contains(":") ? "[\(address.host)]" : address.host
    switch address.scheme {
    case .redfishHTTPS:
      base = "https://\(host):\(address.port)"
      tls = try RedfishTransport.configuration(for: trust, address: address)
    case .redfishHTTP, .ipmi:
      base = "http://\(host):\(address.port)"
      tls = nil
    }
  }

  private static func configuration(for trust: BMCTrust, address: BMCAddress) throws -> TLSConfiguration {
    var configuration = TLSConfiguration.makeClientConfiguration()
    switch trust {
    case .systemRoots: break
    case .authorities(let pem):
      do {
        let certificates = try NIOSSLCertificate.fromPEMBytes(Array(pem.utf8))
        guard !certificates.isEmpty else { throw NIOSSLError.failedToLoadCertificate }
        configuration.trustRoots = .certificates(certificates)
      } catch {
        throw BMCError(
          .certificate, operation: "trust the BMC at \(address.endpoint)",
          message: "the certificate authority given for it is not a PEM certificate", cause: error)
      }
    case .insecureSkipVerify:
      configuration.certificateVerification = .none
    }
    return configuration
  }

  /// Sends one request; redirects of reads within the same host are followed.
  /// - Parameter answerBytes: Bytes that are read of the answer; those of the limits where nil.
  func send(
    _ method: HTTPMethod, _ path: String, body: JSONValue? = nil, headers: HTTPHeaders = [:],
    authorization: Authorization, answerBytes: Int? = nil, operation: String
  ) async throws -> RedfishAnswer {
    var path = path
    for _ in 0..<4 {
      let answer = try await exchange(
        method, path, body: body, headers: headers, authorization: authorization,
        answerBytes: answerBytes ?? limits.answerBytes, operation: operation)
      guard method == .GET, [301, 302, 307, 308].contains(answer.status) else { return answer }
      guard var location = answer.headers.first(name: "Location") else { return answer }
      if location.hasPrefix(base + "/") { location = String(location.dropFirst(base.count)) }
      guard location.isRedfishPath else {
        throw BMCError(
          .protocolError, operation: operation, message: "the BMC redirects to another host; check its address")
      }
      path = location
    }
    throw BMCError(.protocolError, operation: operation, message: "the BMC redirects in a circle")
  }

  private func exchange(
    _ method: HTTPMethod, _ path: String, body: JSONValue?, headers: HTTPHeaders, authorization: Authorization,
    answerBytes: Int, operation: String
  ) async throws -> RedfishAnswer {
    var request = HTTPClientRequest(url: base + path)
    request.method = method
    request.headers = headers
    request.headers.add(name: "Accept", value: "application/json")
    request.headers.add(name: "OData-Version", value: "4.0")
    request.headers.add(name: "User-Agent", value: "ycloud")
    request.tlsConfiguration = tls
    switch authorization {
    case .none: break
    case .basic(let credentials): request.setBasicAuth(username: credentials.username, password: credentials.password)
    case .token(let token): request.headers.add(name: "X-Auth-Token", value: token)
    }
    if let body {
      request.headers.add(name: "Content-Type", value: "application/json")
      request.body = .bytes(ByteBuffer(bytes: body.serialize()))
    }
    let prepared = request
    do {
      // The client's own deadline ends with the head of the answer; a body that trickles must end as well.
      return try await withTimeLimit(limits.request) {
        let response = try await http.execute(prepared, timeout: .nanoseconds(.max / 4))
        let buffer = try await response.body.collect(upTo: answerBytes)
        let value = try? JSONValue.parse(buffer.readableBytesView)
        return RedfishAnswer(status: Int(response.status.code), headers: response.headers, body: value)
      }
    } catch {
      throw translate(error, answerBytes: answerBytes, operation: operation)
    }
  }

  private func translate(_ error: any Error, answerBytes: Int, operation: String) -> any Error {
    switch error {
    case is CancellationError, is BMCError:
      return error
    case let error as TimeLimitExceeded:
      return BMCError(
        .timeout, operation: operation, message: "no answer from \(base) within \(error.limit)", cause: error)
    case let error as HTTPClientError where error == .connectTimeout:
      return BMCError(
        .unreachable, operation: operation,
        message: "nothing answers at \(base) within \(limits.connect); check the address and the network", cause: error)
    case let error as HTTPClientError where error == .deadlineExceeded || error == .readTimeout:
      return BMCError(.timeout, operation: operation, message: "no answer from \(base) in time", cause: error)
    case let error as HTTPClientError where error == .cancelled:
      return Task.isCancelled ? CancellationError() : unreachable(error, operation)
    case let error as HTTPClientError where error == .alreadyShutdown:
      return BMCError(.local, operation: operation, message: "the BMC client is shut down", cause: error)
    case is NIOTooManyBytesError:
      return BMCError(
        .protocolError, operation: operation, message: "the answer is larger than \(answerBytes) bytes")
    case is NIOSSLExtraError:
      return BMCError(
        .certificate, operation: operation,
        message: "the BMC's certificate is for another name or address; use the name it was issued for", cause: error)
    case let error as NIOSSLError:
      let text = String(describing: error)
      if text.contains("CERTIFICATE_VERIFY_FAILED") {
        return BMCError(
          .certificate, operation: operation,
          message: "the BMC's certificate is not signed by a trusted authority; give its CA certificate, or allow it "
            + "unverified", cause: error)
      }
      return BMCError(
        .protocolError, operation: operation,
        message: "no TLS connection to \(base): is it HTTPS there, with a version this client accepts?", cause: error)
    default:
      return unreachable(error, operation)
    }
  }

  private func unreachable(_ error: any Error, _ operation: String) -> BMCError {
    BMCError(
      .unreachable, operation: operation,
      message: "no connection to \(base) (\(String(describing: error).prefix(160))); check the address and the network",
      cause: error)
  }
}
