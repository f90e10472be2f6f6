public import Logging
import Synchronization

#if canImport(Glibc)
  import Glibc
#elseif canImport(Musl)
  import Musl
#elseif canImport(Darwin)
  import Darwin
#endif

/// Where the log of a process goes: one logfmt line per event on standard error.
public enum LoggingSetup {
  private static let isDone = Mutex(false)

  /// Sends all loggers of the process to standard error. Calls after the first one change nothing.
  ///
  /// A line looks like `time=2026-01-31T23:59:59.123Z level=info logger=cache msg="synced" items=12`.
  public static func bootstrap(level: Logger.Level) {
    let first = isDone.withLock { done in
      defer { done = true }
      return !done
    }
    guard first else { return }
    LoggingSystem.bootstrap { label in
      LineLogHandler(label: label, level: level) { line in writeToStandardError(line) }
    }
  }

  /// One write per line, so that lines of several processes on one file do not mix.
  private static func writeToStandardError(_ line: String) {
    var line = line
    line.withUTF8 { bytes in
      var offset = 0
      while offset < bytes.count {
        let written = write(2, bytes.baseAddress.map { $0 + offset }, bytes.count - offset)
        if written < 0, errno == EINTR { continue }
        // Logging must never stop the process: what standard error does not take is lost.
        if written <= 0 { return }
        offset += written
      }
    }
  }
}

/// A log handler that renders events as logfmt lines.
package struct LineLogHandler: LogHandler {
  package var logLevel: Logger.Level
  package var metadata: Logger.Metadata = [:]
  private let label: String
  private let output: @Sendable (String) -> Void

  package init(label: String, level: Logger.Level, output: @escaping @Sendable (String) -> Void) {
    self.label = label
    logLevel = level
    self.output = output
  }

  package subscript(metadataKey key: String) -> Logger.Metadata.Value? {
    get { metadata[key] }
    set { metadata[key] = newValue }
  }

  package func log(event: LogEvent) {
    let (seconds, nanoseconds) = CivilTime.now()
    let time = CivilTime(secondsSince1970: seconds).text(fraction: nanoseconds / 1_000_000, digits: 3)
    var line = "time=\(time)Z level=\(event.level) logger=\(label) msg=\(LineLogHandler.quote("\(event.message)"))"
    var fields = metadata
    if let eventMetadata = event.metadata { fields.merge(eventMetadata) { $1 } }
    for (key, value) in fields.sorted(by: { $0.key < $1.key }) {
      line += " \(LineLogHandler.key(key))=\(LineLogHandler.quote("\(value)"))"
    }
    if let error = event.error { line += " error=\(LineLogHandler.quote("\(error)"))" }
    output(line + "\n")
  }

  /// A field name without the characters that have a meaning in logfmt.
  private static func key(_ key: String) -> String {
    String(String.UnicodeScalarView(key.unicodeScalars.map { $0.value <= 0x20 || $0 == "=" || $0 == "\"" ? "_" : $0 }))
  }

  /// Quotes a value where it needs that; control characters are escaped, so that one event stays one line.
  package static func quote(_ value: String) -> String {
    let needsQuotes =
      value.isEmpty || value.unicodeScalars.contains { $0.value <= 0x20 || $0 == "\"" || $0 == "=" || $0 == "\u{7F}" }
    guard needsQuotes else { return value }
    var result = "\""
    for character in value.unicodeScalars {
      switch character {
      case "\"": result += "\\\""
      case "\\": result += "\\\\"
      case "\n": result += "\\n"
      case "\r": result += "\\r"
      case "\t": result += "\\t"
      default:
        if character.value < 0x20 || character.value == 0x7F {
          let hex = String(character.value, radix: 16)
          result += "\\x" + (hex.count < 2 ? "0" : "") + hex
        } else {
          result.unicodeScalars.append(character)
        }
      }
    }
    return result + "\""
  }
}
