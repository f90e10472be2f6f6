import Storage
import TestSupport
import Testing

@Suite struct UploadAuthorizationTests {
  @Test func takesTheTokenOfABearerHeaderOnly() {
    #expect(UploadAuthorization.bearerToken("Bearer abc") == "abc")
    #expect(UploadAuthorization.bearerToken("bearer abc") == "abc")
    for header in [nil, "", "Bearer", "Bearer ", "Basic abc", "abc", "Bearerabc"] {
      #expect(UploadAuthorization.bearerToken(header) == nil, "\(header ?? "nil")")
    }
    #expect(UploadAuthorization.bearerToken("Bearer " + String(repeating: "x", count: 5000)) == nil)
  }

  @Test func knowsTheTokenByItsDigest() {
    let digest = "2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b"
    #expect(UploadAuthorization.isValid(token: "secret", digest: digest))
    #expect(UploadAuthorization.isValid(token: "secret", digest: digest.uppercased()))
    #expect(!UploadAuthorization.isValid(token: "Secret", digest: digest))
    for bad in [nil, "", "2bb8", digest + "00", String(repeating: "g", count: 64)] {
      #expect(!UploadAuthorization.isValid(token: "secret", digest: bad))
    }
  }

  @Test func checksumsAreSHA256() {
    let digest = String(repeating: "aB", count: 32)
    #expect(UploadAuthorization.checksumDigest("sha256:\(digest)") == digest.lowercased())
    for bad in ["", digest, "md5:\(digest)", "sha256:", "sha256:\(digest)0", "SHA256:\(digest)"] {
      #expect(UploadAuthorization.checksumDigest(bad) == nil)
    }
  }

  @Test func randomBytesAreNeverTaken() {
    var random = SeededGenerator(seed: 5)
    let digest = SHA256.hexDigest("token".utf8)
    for _ in 0..<5000 {
      let text = String(decoding: random.bytes(Int.random(in: 0...90, using: &random)), as: UTF8.self)
      if let token = UploadAuthorization.bearerToken(text) {
        #expect(!UploadAuthorization.isValid(token: token, digest: digest))
      }
      #expect(!UploadAuthorization.isValid(token: "token", digest: text))
      #expect(UploadAuthorization.checksumDigest(text) == nil)
      if let key = ClaimKey(text) { #expect("\(key)" == text) }
      if isObjectName(text) { #expect(!text.contains("/")) }
    }
  }

  @Test func namesInPathsAreThoseOfObjects() {
    for good in ["a", "images", "debian-12", "a.b", String(repeating: "a", count: 253)] { #expect(isObjectName(good)) }
    for bad in ["", ".", "..", "a/b", "A", "a_b", "a%2fb", "a b", ".a", "a.", String(repeating: "a", count: 254)] {
      #expect(!isObjectName(bad))
    }
  }
}
