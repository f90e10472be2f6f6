import Glibc
import TestSupport

/// Folders of certificates as libnbd, QEMU and nbdkit want them: ca-cert.pem, and a pair for the server or a client.
struct TestCertificates {
  let directory: TemporaryDirectory

  init() throws { directory = try TemporaryDirectory() }

  func path(_ name: String) -> String { directory.file(name) }

  private var keyOptions: [String] { ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"] }

  /// An authority: `NAME.pem` and `NAME-key.pem`.
  func makeAuthority(_ name: String) async throws {
    try await ChildProcess.run(
      "openssl",
      ["req", "-x509"] + keyOptions + [
        "-keyout", path("\(name)-key.pem"), "-out", path("\(name).pem"), "-subj", "/CN=\(name)", "-days", "2",
        "-addext", "basicConstraints=critical,CA:TRUE", "-addext", "keyUsage=critical,keyCertSign",
      ])
  }

  /// A certificate by an authority: `FILE.pem` and `FILE-key.pem`.
  func sign(_ file: String, by authority: String, isServer: Bool) async throws {
    try await ChildProcess.run(
      "openssl",
      ["req", "-x509", "-CA", path("\(authority).pem"), "-CAkey", path("\(authority)-key.pem")] + keyOptions + [
        "-keyout", path("\(file)-key.pem"), "-out", path("\(file).pem"), "-subj",
        "/CN=\(isServer ? "localhost" : file)",
        "-days", "2", "-addext", "basicConstraints=critical,CA:FALSE", "-addext",
        "subjectAltName=DNS:localhost,IP:127.0.0.1", "-addext",
        "extendedKeyUsage=\(isServer ? "serverAuth" : "clientAuth")",
      ])
  }

  /// A client's folder: whom it trusts, and, where it has one, its certificate.
  func folder(_ name: String, trusting authority: String, certificate: String? = nil) async throws -> String {
    let folder = path(name)
    mkdir(folder, 0o700)
    try await ChildProcess.run("cp", [path("\(authority).pem"), "\(folder)/ca-cert.pem"])
    if let certificate {
      try await ChildProcess.run("cp", [path("\(certificate).pem"), "\(folder)/client-cert.pem"])
      try await ChildProcess.run("cp", [path("\(certificate)-key.pem"), "\(folder)/client-key.pem"])
    }
    return folder
  }

  /// Puts the file of one name in the place of another, in one step.
  func replace(_ file: String, with other: String) async throws {
    try await ChildProcess.run("cp", [path(other), path("\(file).new")])
    try await ChildProcess.run("mv", [path("\(file).new"), path(file)])
  }
}
