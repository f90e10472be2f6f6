/// How the BMC of a simulated server is talked to.
struct BMCAccess: Sendable {
  var address: String
  var username: String
  var password: String
  /// In PEM.
  var authority: String

  /// - Throws: ``LocalCloudError`` where the directory lacks the account or the certificate.
  init(_ host: String, directory: CloudDirectory, settings: CloudSettings) throws {
    let line = try Files.read(directory.host(host).bmcCredentials) ?? ""
    let parts = line.prefix { $0 != "\n" }.split(separator: ":", maxSplits: 1)
    let authority = try Files.read(directory.certificate(Certificates.Authority.hardware.rawValue)) ?? ""
    guard parts.count == 2, !authority.isEmpty else {
      throw LocalCloudError(
        .fileSystem, operation: "talk to the BMC of \(host)",
        "its account or certificate is missing in \(directory.path)")
    }
    address = "redfish+https://127.0.0.1:\(settings.ports[PortPlan.bmc(host)] ?? 0)"
    username = String(parts[0])
    password = String(parts[1])
    self.authority = authority
  }
}
