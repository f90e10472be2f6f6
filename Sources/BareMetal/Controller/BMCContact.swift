package import BMC
package import IaaS
package import Kubernetes

#if canImport(FoundationEssentials)
  import FoundationEssentials
#else
  import Foundation
#endif

/// How a host's BMC is talked to: its address, the account, and whose certificate is believed.
package struct BMCContact: Sendable, Hashable {
  package var address: BMCAddress
  package var credentials: BMCCredentials
  package var trust: BMCTrust

  /// Made of the host's spec and of the secret that it names, which `readSecret` reads.
  ///
  /// Throws `BareMetalError` where one of them cannot be used, `BMCError` where the address is none, and what
  /// `readSecret` throws, but for a secret that is not there.
  package init(
    of host: BareMetalHost, readSecret: (_ name: String, _ namespace: String) async throws -> Secret
  ) async throws {
    let bmc = host.spec.bmc
    let reference = bmc.credentialsSecretRef
    let name = "\(reference.namespace)/\(reference.name)"
    let operation = "talk to the BMC of \(host.metadata.name ?? "")"
    if let problem = credentialsProblem(host) {
      throw BareMetalError(.invalid, operation: operation, message: problem)
    }
    let secret: Secret
    do {
      secret = try await readSecret(reference.name, reference.namespace)
    } catch let error as KubernetesError where error.code == .notFound {
      throw BareMetalError(
        .missing, operation: operation,
        message: "there is no secret \(name); make it with the keys username and password")
    }
    guard let username = secret.string("username"), let password = secret.string("password") else {
      throw BareMetalError(
        .invalid, operation: operation, message: "the secret \(name) lacks the key username or password")
    }
    trust = .systemRoots
    if bmc.insecureSkipVerify {
      trust = .insecureSkipVerify
    } else if let bundle = bmc.caBundle {
      guard let data = Data(base64Encoded: bundle), let pem = String(validating: data, as: UTF8.self) else {
        throw BareMetalError(.invalid, operation: operation, message: "spec.bmc.caBundle is not PEM in Base64")
      }
      trust = .authorities(pem: pem)
    }
    address = try BMCAddress(bmc.address)
    credentials = BMCCredentials(username: username.trimmingLineEnd(), password: password.trimmingLineEnd())
  }
}

extension String {
  /// Secrets made from files often end in a line break that belongs to the file.
  fileprivate func trimmingLineEnd() -> String {
    var text = self
    while let last = text.last, last == "\n" || last == "\r\n" { text.removeLast() }
    return text
  }
}
