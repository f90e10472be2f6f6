import Glibc

#if canImport(FoundationEssentials)
  import FoundationEssentials
#else
  import Foundation
#endif

/// What the terminal can show.
package struct Style: Sendable, Hashable {
  package enum Color: String, Sendable, Hashable {
    case red = "31"
    case green = "32"
    case yellow = "33"
    case cyan = "36"
    case gray = "90"
    case bold = "1"
  }

  package var colors: Bool
  package var unicode: Bool

  package init(colors: Bool, unicode: Bool) {
    self.colors = colors
    self.unicode = unicode
  }

  /// Colours only where the output is a terminal that has them, and nobody asked for none (no-color.org).
  package static func detect(isTerminal: Bool, environment: [String: String]) -> Style {
    let wanted = (environment["NO_COLOR"] ?? "").isEmpty && environment["TERM"] != "dumb"
    let locale =
      ["LC_ALL", "LC_CTYPE", "LANG"].lazy.compactMap { environment[$0] }.first { !$0.isEmpty } ?? ""
    let folded = locale.lowercased()
    // A log or a pipe is read by programs that take UTF-8; only a terminal in another encoding would garble it.
    let unicode = !isTerminal || folded.contains("utf-8") || folded.contains("utf8")
    return Style(colors: isTerminal && wanted, unicode: unicode)
  }

  /// The style of standard output.
  static func standardOutput() -> Style {
    detect(isTerminal: isatty(1) == 1, environment: ProcessInfo.processInfo.environment)
  }

  package func paint(_ text: String, _ color: Color) -> String {
    colors && !text.isEmpty ? "\u{1B}[\(color.rawValue)m\(text)\u{1B}[0m" : text
  }

  /// The word of a phase or a power state in its colour.
  package func state(_ text: String) -> String {
    switch text {
    case "Running", "Available", "On", "Ready", "Succeeded", "True": paint(text, .green)
    case "Error", "Failed", "Unknown": paint(text, .red)
    case "Stopped", "Off", "Maintenance": paint(text, .gray)
    case "Pending", "Provisioning", "Starting", "Stopping", "Deleting", "Registering", "PoweringOn", "PoweringOff",
      "Uploading":
      paint(text, .yellow)
    default: text
    }
  }
}
