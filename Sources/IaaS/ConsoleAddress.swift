/// Where a host's serial console is served: `unix:/path/of/socket`.
public struct ConsoleAddress: Sendable, Hashable, CustomStringConvertible {
  /// Annotation of a host: where its console is served, on the computer that bm-api or bmctl runs on.
  public static let annotation = "iaas.yusur.io/console"

  public let path: String

  public init?(_ text: String) {
    guard text.hasPrefix("unix:") else { return nil }
    let path = String(text.dropFirst(5))
    // sun_path holds 108 bytes, the last of them 0.
    guard path.hasPrefix("/"), path.utf8.count <= 107, !path.utf8.contains(0) else { return nil }
    self.path = path
  }

  public var description: String { "unix:\(path)" }
}
