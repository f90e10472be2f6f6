import Glibc

/// Keys and certificates of one cloud, made with openssl and kept in `pki/`.
///
/// There are four authorities, so that a certificate for one purpose is worth nothing for another: `ca` for the API
/// server and its users, `etcd-ca` for the database, which only the API server may enter, `hardware-ca` for the
/// servers' BMCs, and `front-proxy-ca` for the API server where it speaks for its users to bm-api.
struct Certificates: Sendable {
  let directory: CloudDirectory

  enum Authority: String, Sendable, CaseIterable {
    case cluster = "ca"
    case etcd = "etcd-ca"
    case hardware = "hardware-ca"
    case frontProxy = "front-proxy-ca"
  }

  struct Request: Sendable {
    var name: String
    var authority: Authority
    /// `/O=group/CN=user`, as openssl writes it.
    var subject: String
    /// Names and addresses of a server; empty for a client.
    var subjectAlternativeNames: [String] = []
    var isClient: Bool { isBoth || subjectAlternativeNames.isEmpty }
    /// A peer of etcd is both.
    var isBoth = false
  }

  /// The API server where it speaks for its users.
  static let frontProxyClient = "front-proxy-client"

  /// What a cloud with these hosts needs.
  static func requests(hosts: [String]) -> [Request] {
    let local = ["DNS:localhost", "IP:127.0.0.1"]
    var requests = [
      Request(
        name: "kube-apiserver", authority: .cluster, subject: "/CN=kube-apiserver",
        subjectAlternativeNames: local + ["IP:10.96.0.1"]
          + ["kubernetes", "kubernetes.default", "kubernetes.default.svc"].map { "DNS:\($0)" }),
      Request(
        name: "kube-controller-manager-server", authority: .cluster, subject: "/CN=kube-controller-manager",
        subjectAlternativeNames: local),
      Request(name: "upload", authority: .cluster, subject: "/CN=upload", subjectAlternativeNames: local),
      Request(
        name: "bm-api-server", authority: .cluster, subject: "/CN=bm-api",
        subjectAlternativeNames: local + ["bm-api.ycloud-system.svc", "bm-api.ycloud-system"].map { "DNS:\($0)" }),
      Request(name: frontProxyClient, authority: .frontProxy, subject: "/CN=\(frontProxyClient)"),
      Request(
        name: "etcd", authority: .etcd, subject: "/CN=etcd", subjectAlternativeNames: local, isBoth: true),
      Request(name: "etcd-client", authority: .etcd, subject: "/CN=kube-apiserver"),
    ]
    requests += Account.all(hosts: hosts).map { account in
      let groups = account.groups.map { "/O=\($0)" }.joined()
      return Request(name: account.name, authority: .cluster, subject: "\(groups)/CN=\(account.user)")
    }
    requests += hosts.map { host in
      Request(
        name: "bmc-\(host)", authority: .hardware, subject: "/CN=bmc.\(host)",
        subjectAlternativeNames: local + ["DNS:bmc.\(host)"])
    }
    return requests
  }

  /// Makes what is missing. Existing keys are kept, as kubeconfigs in people's hands refer to them.
  func make(hosts: [String]) async throws {
    try Files.makeDirectory(directory.pki, mode: 0o700)
    for authority in Authority.allCases where !isComplete(authority.rawValue) {
      try await makeAuthority(authority)
    }
    for request in Self.requests(hosts: hosts) where !isComplete(request.name) {
      try await makeCertificate(request)
    }
    if !Files.exists(directory.serviceAccountPublicKey) {
      try await makeKey("service-accounts")
      let key = try await Command.run("openssl", "pkey", "-in", directory.privateKey("service-accounts"), "-pubout")
      try Files.write(directory.serviceAccountPublicKey, key)
    }
  }

  private func isComplete(_ name: String) -> Bool {
    // The certificate is the last file to appear.
    Files.exists(directory.certificate(name)) && Files.exists(directory.privateKey(name))
  }

  private func makeKey(_ name: String) async throws {
    // Through a pipe into a file that nobody else may read from its first byte on.
    let key = try await Command.run(
      "openssl", "genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-pkeyopt",
      "ec_param_enc:named_curve")
    try Files.write(directory.privateKey(name), key, mode: 0o600)
  }

  private func makeAuthority(_ authority: Authority) async throws {
    let name = authority.rawValue
    try await makeKey(name)
    let certificate = try await Command.run(
      "openssl", "req", "-x509", "-new", "-sha256", "-days", "3650", "-key", directory.privateKey(name), "-subj",
      "/O=ycloud/CN=\(name)", "-addext", "basicConstraints=critical,CA:TRUE,pathlen:0", "-addext",
      "keyUsage=critical,keyCertSign,cRLSign")
    try Files.write(directory.certificate(name), certificate)
  }

  private func makeCertificate(_ request: Request) async throws {
    try await makeKey(request.name)
    let extensions = "\(directory.pki)/\(request.name).ext"
    try Files.write(extensions, Self.extensions(request))
    defer { unlink(extensions) }
    let signing = try await Command.run(
      "openssl", "req", "-new", "-key", directory.privateKey(request.name), "-subj", request.subject)
    let authority = request.authority.rawValue
    let certificate = try await Command.run(
      "openssl",
      [
        "x509", "-req", "-sha256", "-days", "3650", "-CA", directory.certificate(authority), "-CAkey",
        directory.privateKey(authority), "-set_serial", "0x\(String(UInt64.random(in: 1..<1 << 63), radix: 16))",
        "-extfile", extensions,
      ], input: signing)
    try Files.write(directory.certificate(request.name), certificate)
  }

  static func extensions(_ request: Request) -> String {
    var usages: [String] = []
    if !request.subjectAlternativeNames.isEmpty { usages.append("serverAuth") }
    if request.isClient { usages.append("clientAuth") }
    var lines = [
      "basicConstraints=critical,CA:FALSE", "keyUsage=critical,digitalSignature",
      "extendedKeyUsage=\(usages.joined(separator: ","))",
    ]
    if !request.subjectAlternativeNames.isEmpty {
      lines.append("subjectAltName=\(request.subjectAlternativeNames.joined(separator: ","))")
    }
    return lines.joined(separator: "\n") + "\n"
  }
}
