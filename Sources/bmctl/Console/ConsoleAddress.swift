/// Where a host's serial console is served: `unix:/path/of/socket`.
package struct ConsoleAddress: Sendable, Hashable, CustomStringConvertible {
  /// On the host: where its console is served on the machine that bmctl runs on.
  package static let annotation = "iaas.yusur.io/console"

  package let path: String

  package init?(_ text: String) {
    guard text.hasPrefix("unix:") else { return nil }
    let path = String(text.dropFirst(5))
    // sun_path holds 108 bytes, the last of them 0.
    guard path.hasPrefix("/"), path.utf8.count <= 107, !path.utf8.contains(0) else { return nil }
    self.path = path
  }

  package var description: String { "unix:\(path)" }
}
