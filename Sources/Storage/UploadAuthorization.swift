/// Tokens and checksums as claims carry them.
package enum UploadAuthorization {
  /// The longest token that is looked at.
  package static let maximumTokenBytes = 4096

  /// The token of an `Authorization: Bearer` header.
  package static func bearerToken(_ header: String?) -> String? {
    guard let header, header.utf8.count <= maximumTokenBytes + 7 else { return nil }
    let parts = header.split(separator: " ", maxSplits: 1)
    guard parts.count == 2, parts[0].lowercased() == "bearer", !parts[1].isEmpty else { return nil }
    return String(parts[1])
  }

  /// Whether the token is the one whose digest the claim carries; takes the same time wherever they differ.
  package static func isValid(token: String, digest: String?) -> Bool {
    guard let digest, isDigest(digest) else { return false }
    let actual = Array(SHA256.hexDigest(token.utf8).utf8)
    let expected = Array(digest.lowercased().utf8)
    guard actual.count == expected.count else { return false }
    return zip(actual, expected).reduce(UInt8(0)) { $0 | ($1.0 ^ $1.1) } == 0
  }

  /// The digest of a checksum `sha256:<64 hexadecimal digits>`.
  package static func checksumDigest(_ text: String) -> String? {
    guard text.hasPrefix("sha256:") else { return nil }
    let digest = String(text.dropFirst(7))
    return isDigest(digest) ? digest.lowercased() : nil
  }

  private static func isDigest(_ text: String) -> Bool {
    text.utf8.count == 64
      && text.utf8.allSatisfy {
        (UInt8(ascii: "0")...UInt8(ascii: "9")).contains($0)
          || (UInt8(ascii: "a")...UInt8(ascii: "f")).contains($0 | 0x20)
      }
  }
}
