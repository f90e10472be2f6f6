import JSON

/// Which calls may be carried out by a process that runs as root on somebody's machine: those that stay within the
/// target's own directory and on the loopback interface, and take no memory or space that others need.
struct Harmless {
  let directory: String

  /// `$D` stands for the directory.
  func expand(_ input: [UInt8]) -> [UInt8] {
    var output: [UInt8] = []
    output.reserveCapacity(input.count + 64)
    var index = 0
    while index < input.count {
      if input[index] == 0x24, index + 1 < input.count, input[index + 1] == 0x44 {
        output += Array(directory.utf8)
        index += 2
      } else {
        output.append(input[index])
        index += 1
      }
    }
    return output
  }

  func allows(_ value: JSONValue, key: String = "") -> Bool {
    switch value {
    case .object(let members): return members.allSatisfy { allows($1, key: $0) }
    case .array(let elements): return elements.allSatisfy { allows($0, key: key) }
    case .string(let text): return allows(text, key: key)
    default:
      // What is neither small nor absurd would fill the disk.
      guard key.hasPrefix("size") || key == "new_size" || key == "num_blocks", let number = value.int64Value else {
        return true
      }
      return number < 65536 || number > 1 << 60
    }
  }

  private func allows(_ text: String, key: String) -> Bool {
    if key == "traddr" || key == "hostaddr" { return text == "127.0.0.1" || text.isEmpty }
    guard text.utf8.contains(0x2F) else { return true }
    if text.contains("..") || text.utf8.contains(0) { return false }
    if text == directory { return false }
    if text.hasPrefix("\(directory)/") || text.hasPrefix("nbd+unix:///?socket=\(directory)/") { return true }
    if text.hasPrefix("nbd://127.0.0.1:") { return true }
    // An alias of a volume.
    return key != "filename" && key != "nbd_device" && !text.hasPrefix("/") && !text.contains(":")
  }
}
