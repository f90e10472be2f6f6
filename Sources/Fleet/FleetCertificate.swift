package import NIOSSL
import Subprocess

/// The certificate that all BMCs of a fleet show: signed by itself, as they come from the factory.
package enum FleetCertificate {
  /// Made with openssl, in memory only.
  package static func make() async throws -> NIOSSLContext {
    let operation = "make the BMCs' certificate"
    let key = try await openssl(
      ["genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-pkeyopt", "ec_param_enc:named_curve"],
      input: "", operation)
    let certificate = try await openssl(
      [
        "req", "-x509", "-new", "-sha256", "-days", "365", "-key", "/dev/stdin", "-subj", "/O=ycloud/CN=simulated BMC",
      ], input: key, operation)
    do {
      let chain = try NIOSSLCertificate.fromPEMBytes(Array(certificate.utf8)).map {
        NIOSSLCertificateSource.certificate($0)
      }
      let privateKey = try NIOSSLPrivateKey(bytes: Array(key.utf8), format: .pem)
      var configuration = TLSConfiguration.makeServerConfiguration(
        certificateChain: chain, privateKey: .privateKey(privateKey))
      configuration.minimumTLSVersion = .tlsv12
      return try NIOSSLContext(configuration: configuration)
    } catch {
      throw FleetError(operation, "openssl made something that cannot be used: \(error)")
    }
  }

  private static func openssl(_ arguments: [String], input: String, _ operation: String) async throws -> String {
    do {
      let record = try await Subprocess.run(
        .name("openssl"), arguments: Arguments(arguments), input: .string(input), output: .string(limit: 64 << 10),
        error: .string(limit: 64 << 10))
      guard record.terminationStatus.isSuccess else {
        throw FleetError(operation, "openssl \(arguments[0]): \(record.standardError.suffix(500))")
      }
      return record.standardOutput
    } catch let error as FleetError {
      throw error
    } catch let error as CancellationError {
      throw error
    } catch {
      throw FleetError(operation, "openssl cannot be run: \(error); install the package openssl")
    }
  }
}
