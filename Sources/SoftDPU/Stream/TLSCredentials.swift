import CLinux
import Glibc
import Logging

/// The files that a server shows itself by, and knows its clients by: paths, never what is in them.
struct TLSFiles: Sendable, Hashable {
  /// Either a certificate with its chain, and its key ...
  var certificate: String?
  var key: String?
  /// ... and the authorities of clients, who then have to have a certificate; nil takes every client ...
  var ca: String?
  /// ... or keys that both sides have, in lines NAME:HEX.
  var sharedKeys: String?

  /// In the order of the parameters, with their names.
  var named: [(parameter: String, path: String)] {
    [("tls_certificate", certificate), ("tls_key", key), ("tls_ca", ca), ("tls_psk", sharedKeys)].compactMap { entry in
      entry.1.map { (entry.0, $0) }
    }
  }

  /// EINVAL where the files do not go together.
  func check(_ operation: String) throws(SoftDPUError) {
    let text: String
    switch (certificate, key, ca, sharedKeys) {
    case (.some, .some, _, nil), (nil, nil, nil, .some): return
    case (nil, nil, nil, nil): text = "tls_mode needs tls_certificate and tls_key, or tls_psk"
    case (_, _, _, .some): text = "tls_psk stands alone: leave out tls_certificate, tls_key and tls_ca"
    case (nil, _, _, _): text = "tls_certificate is missing: give the PEM file with the server's certificate"
    default: text = "tls_key is missing: give the PEM file with the key of tls_certificate"
    }
    throw SoftDPUError(code: .invalid, operation: operation, message: text)
  }
}

/// A server's certificates or keys, ready for connections. Files that have changed are read again for the next connection;
/// where they are not sound, what was read before stays.
///
/// SAFETY: made by the RPC server's queue, and used by one reactor from then on.
@safe
final class TLSCredentials: @unchecked Sendable {
  let files: TLSFiles
  private let logger: Logger
  private var context: OpaquePointer
  /// What the files looked like when they were read last, sound or not.
  private var stamps: [FileStamp]

  /// What tells that a file was replaced or written.
  private struct FileStamp: Hashable {
    var device: UInt64
    var inode: UInt64
    var size: Int64
    var seconds: Int
    var nanoseconds: Int
  }

  /// Certificates and keys are small: what is larger is something else.
  private static let maximumLength: Int64 = 1 << 20

  /// Reads the files. EINVAL where one is not sound; the message names the parameter, the file and the remedy.
  init(_ files: TLSFiles, logger: Logger) throws(SoftDPUError) {
    try files.check("set up TLS")
    self.files = files
    self.logger = logger
    stamps = try TLSCredentials.stamps(of: files)
    unsafe context = try TLSCredentials.load(files)
  }

  deinit { unsafe clinux_tls_context_free(context) }

  /// A session for a connection that has agreed on TLS; nil where there is no memory. On the reactor.
  func makeSession() -> OpaquePointer? {
    reload()
    return unsafe clinux_tls_new(context)
  }

  private func reload() {
    do throws(SoftDPUError) {
      let now = try TLSCredentials.stamps(of: files)
      guard now != stamps else { return }
      // Remembered before it is known whether they are sound: bad files are read, and told, once.
      stamps = now
      let fresh = try unsafe TLSCredentials.load(files)
      // Connections keep what they were made with.
      unsafe clinux_tls_context_free(context)
      unsafe context = unsafe fresh
      logger.info("the files of TLS were read again")
    } catch {
      guard !isToldOf(error.message) else { return }
      logger.warning("the files of TLS are not sound; going on with the last ones", metadata: ["error": "\(error)"])
    }
  }

  private var lastFailure = ""

  private func isToldOf(_ message: String) -> Bool {
    defer { lastFailure = message }
    return message == lastFailure
  }

  private static func stamps(of files: TLSFiles) throws(SoftDPUError) -> [FileStamp] {
    var stamps: [FileStamp] = []
    for (parameter, path) in files.named {
      // A restart may have another working directory.
      guard path.hasPrefix("/") else { throw failure(parameter, path, "not an absolute path") }
      var status = stat()
      guard unsafe stat(path, &status) == 0 else { throw failure(parameter, path, systemText(errno)) }
      // Opening something else might wait for ever.
      guard status.st_mode & S_IFMT == S_IFREG, status.st_size <= maximumLength else {
        throw failure(parameter, path, "not a file of at most 1 MiB")
      }
      stamps.append(
        FileStamp(
          device: UInt64(status.st_dev), inode: UInt64(status.st_ino), size: Int64(status.st_size),
          seconds: status.st_mtim.tv_sec, nanoseconds: status.st_mtim.tv_nsec))
    }
    return stamps
  }

  private static func load(_ files: TLSFiles) throws(SoftDPUError) -> OpaquePointer {
    var failed = CLINUX_TLS_NONE
    if let context = unsafe clinux_tls_context_new(files.certificate, files.key, files.ca, files.sharedKeys, &failed) {
      return unsafe context
    }
    var text = [CChar](repeating: 0, count: 128)
    unsafe clinux_tls_reason(&text, text.count)
    let reason = String(decoding: text.prefix { $0 != 0 }.map { UInt8(bitPattern: $0) }, as: UTF8.self)
    switch failed {
    case CLINUX_TLS_CERTIFICATE: throw failure("tls_certificate", files.certificate, reason)
    case CLINUX_TLS_KEY: throw failure("tls_key", files.key, reason)
    case CLINUX_TLS_CA: throw failure("tls_ca", files.ca, reason)
    case CLINUX_TLS_SHARED_KEYS: throw failure("tls_psk", files.sharedKeys, "a line that is no key")
    default: throw SoftDPUError(code: .system(ENOMEM), operation: "set up TLS", message: reason)
    }
  }

  private static func failure(_ parameter: String, _ path: String?, _ reason: String) -> SoftDPUError {
    let remedy =
      switch parameter {
      case "tls_certificate": "give a PEM file with the server's certificate and the chain behind it"
      case "tls_key": "give a PEM file with the key of tls_certificate, without a passphrase"
      case "tls_ca": "give a PEM file with the certificates of those who sign clients"
      default: "give a file with lines NAME:HEX, keys of 16 to 64 bytes"
      }
    return SoftDPUError(
      code: .invalid, operation: "set up TLS", message: "\(parameter) \(path ?? ""): \(reason); \(remedy)")
  }
}
