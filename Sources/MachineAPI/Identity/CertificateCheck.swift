import SwiftASN1
import X509

/// Whose certificate it is, where an authority signed it.
package struct CertificateSubject: Sendable, Hashable {
  package var commonName: String
  package var organizations: [String]
}

/// Checks a peer's certificate (RFC 5280): signed by one of the authorities, valid now, and meant for clients.
///
/// That the peer has the key was proven in the TLS handshake.
package enum CertificateCheck {
  /// - Parameter authorities: certificates in PEM; none of them trusts nobody.
  package static func subject(ofCertificate der: [UInt8], signedBy authorities: String) async -> CertificateSubject? {
    guard let roots = try? parse(authorities), !roots.isEmpty, let leaf = try? Certificate(derEncoded: der) else {
      return nil
    }
    // A certificate for servers only is none for clients; one that says nothing may be used for anything.
    if let usages = try? leaf.extensions.extendedKeyUsage,
      !usages.contains(.clientAuth), !usages.contains(.any)
    {
      return nil
    }
    var verifier = Verifier(rootCertificates: CertificateStore(roots)) { RFC5280Policy() }
    guard case .validCertificate = await verifier.validate(leaf: leaf, intermediates: CertificateStore([])) else {
      return nil
    }
    var commonName: String?
    var organizations: [String] = []
    for attribute in leaf.subject.lazy.flatMap({ $0 }) {
      guard let text = String(attribute.value) else { continue }
      if attribute.type == .NameAttributes.commonName { commonName = text }
      if attribute.type == .NameAttributes.organizationName { organizations.append(text) }
    }
    guard let commonName, !commonName.isEmpty else { return nil }
    return CertificateSubject(commonName: commonName, organizations: organizations)
  }

  private static func parse(_ pem: String) throws -> [Certificate] {
    guard !pem.isEmpty else { return [] }
    return try PEMDocument.parseMultiple(pemString: pem).map { try Certificate(pemDocument: $0) }
  }
}
