package import JSON

/// Whole objects as text.
package enum DocumentText {
  /// JSON with four blanks for each level, as kubectl prints it.
  package static func json(_ value: JSONValue) -> String {
    var text = ""
    writeJSON(value, indentation: 0, to: &text)
    return text
  }

  private static func writeJSON(_ value: JSONValue, indentation: Int, to text: inout String) {
    let inner = String(repeating: " ", count: indentation + 4)
    let outer = String(repeating: " ", count: indentation)
    switch value {
    case .array(let elements) where !elements.isEmpty:
      text += "[\n"
      for (index, element) in elements.enumerated() {
        text += inner
        writeJSON(element, indentation: indentation + 4, to: &text)
        text += index == elements.count - 1 ? "\n" : ",\n"
      }
      text += outer + "]"
    case .object(let members) where !members.isEmpty:
      text += "{\n"
      for (index, member) in members.sorted(by: { $0.key < $1.key }).enumerated() {
        text += inner + JSONValue.string(member.key).text + ": "
        writeJSON(member.value, indentation: indentation + 4, to: &text)
        text += index == members.count - 1 ? "\n" : ",\n"
      }
      text += outer + "}"
    default: text += value.text
    }
  }

  /// YAML (1.2 and what older parsers take for it). Strings that could be read as something else are in double quotes,
  /// with JSON's escapes.
  package static func yaml(_ value: JSONValue) -> String {
    var text = ""
    writeYAML(value, indentation: 0, inSequence: false, to: &text)
    return text
  }

  private static func writeYAML(_ value: JSONValue, indentation: Int, inSequence: Bool, to text: inout String) {
    let blanks = String(repeating: " ", count: indentation)
    switch value {
    case .object(let members) where !members.isEmpty:
      for (index, member) in members.sorted(by: { $0.key < $1.key }).enumerated() {
        text += (inSequence && index == 0 ? "" : blanks) + scalar(member.key) + ":"
        writeMember(member.value, indentation: indentation, to: &text)
      }
    case .array(let elements) where !elements.isEmpty:
      for (index, element) in elements.enumerated() {
        text += (inSequence && index == 0 ? "" : blanks) + "- "
        writeYAML(element, indentation: indentation + 2, inSequence: true, to: &text)
      }
    case .object: text += "{}\n"
    case .array: text += "[]\n"
    case .string(let string): text += string.contains("\n") ? block(string, indentation) : scalar(string) + "\n"
    default: text += value.text + "\n"
    }
  }

  private static func writeMember(_ value: JSONValue, indentation: Int, to text: inout String) {
    switch value {
    case .object(let members) where !members.isEmpty:
      text += "\n"
      writeYAML(value, indentation: indentation + 2, inSequence: false, to: &text)
    case .array(let elements) where !elements.isEmpty:
      // As kubectl: the dashes stand under the key.
      text += "\n"
      writeYAML(value, indentation: indentation, inSequence: false, to: &text)
    case .string(let string) where string.contains("\n"): text += " " + block(string, indentation + 2)
    default:
      text += " "
      writeYAML(value, indentation: indentation, inSequence: true, to: &text)
    }
  }

  /// A text of several lines as a literal block where that keeps it exact, else as a quoted scalar.
  private static func block(_ string: String, _ indentation: Int) -> String {
    let printable = string.unicodeScalars.allSatisfy {
      ($0.value >= 0x20 && $0.value != 0x7F && $0.value != 0xFEFF && !(0x80...0x9F).contains($0.value)
        && $0.value != 0x2028 && $0.value != 0x2029) || $0 == "\n" || $0 == "\t"
    }
    var lines = string.split(separator: "\n", omittingEmptySubsequences: false)
    let endsWithNewline = lines.last?.isEmpty ?? false
    if endsWithNewline { lines.removeLast() }
    let ambiguous =
      lines.first.map { $0.isEmpty || $0.hasPrefix(" ") || $0.hasPrefix("\t") } ?? true
      || lines.last.map { $0.isEmpty } ?? true
    guard printable, !ambiguous, indentation > 0 else { return quoted(string) + "\n" }
    let blanks = String(repeating: " ", count: indentation)
    return (endsWithNewline ? "|\n" : "|-\n") + lines.map { $0.isEmpty ? "\n" : "\(blanks)\($0)\n" }.joined()
  }

  private static func scalar(_ string: String) -> String {
    isPlain(string) ? string : quoted(string)
  }

  /// A string in double quotes. JSON lets some characters stand for themselves that are line breaks, or not allowed, in
  /// YAML 1.1.
  private static func quoted(_ string: String) -> String {
    let text = JSONValue.string(string).text
    guard text.utf8.contains(where: { $0 >= 0x7F }) else { return text }
    return text.unicodeScalars.reduce(into: "") { result, scalar in
      switch scalar.value {
      case 0x7F...0x9F: result += "\\u00\(String(scalar.value, radix: 16))"
      case 0x2028, 0x2029, 0xFEFF, 0xFFFE, 0xFFFF: result += "\\u\(String(scalar.value, radix: 16))"
      default: result.unicodeScalars.append(scalar)
      }
    }
  }

  /// Whether no YAML parser can take it for a number, a date, a Boolean, null or syntax.
  private static func isPlain(_ string: String) -> Bool {
    guard let first = string.utf8.first, isLetter(first) || first == UInt8(ascii: "/") else { return false }
    let reserved: Set<String> = ["y", "n", "yes", "no", "on", "off", "true", "false", "null", "nan", "inf"]
    if reserved.contains(string.lowercased()) { return false }
    let safe = string.utf8.allSatisfy {
      isLetter($0) || ($0 >= UInt8(ascii: "0") && $0 <= UInt8(ascii: "9")) || "-_./ @+=()%,;".utf8.contains($0)
        || $0 == UInt8(ascii: ":")
    }
    // A colon is syntax only before a blank or at the end; a comment starts at " #", which is not in the safe set.
    return safe && !string.hasSuffix(" ") && !string.hasSuffix(":") && !string.utf8.containsPair(":", " ")
  }

  private static func isLetter(_ byte: UInt8) -> Bool {
    (byte | 0x20) >= UInt8(ascii: "a") && (byte | 0x20) <= UInt8(ascii: "z")
  }
}

extension String.UTF8View {
  fileprivate func containsPair(_ first: Unicode.Scalar, _ second: Unicode.Scalar) -> Bool {
    zip(self, dropFirst()).contains { $0 == UInt8(ascii: first) && $1 == UInt8(ascii: second) }
  }
}
