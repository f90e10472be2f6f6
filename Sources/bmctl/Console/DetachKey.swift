/// The key that ends a console session, as `ssh` and `docker` name keys: `^]`, `ctrl-]`, `^A`.
package struct DetachKey: Sendable, Hashable {
  /// The control character; nil where no key ends the session.
  package let byte: UInt8?

  package init?(_ text: String) {
    let folded = text.lowercased()
    if folded == "none" {
      byte = nil
      return
    }
    let key: Substring
    if folded.hasPrefix("ctrl-") || folded.hasPrefix("ctrl+") {
      key = folded.dropFirst(5)
    } else if folded.hasPrefix("^") {
      key = folded.dropFirst()
    } else {
      return nil
    }
    guard key.utf8.count == 1, let code = key.utf8.first else { return nil }
    switch code {
    case UInt8(ascii: "a")...UInt8(ascii: "z"): byte = code - UInt8(ascii: "a") + 1
    case UInt8(ascii: "["), UInt8(ascii: "\\"), UInt8(ascii: "]"), UInt8(ascii: "^"), UInt8(ascii: "_"):
      byte = code - 0x40
    default: return nil
    }
    // These are typed all the time, or would cut the terminal's own sequences in two.
    if [0x09, 0x0A, 0x0D, 0x1B].contains(byte) { return nil }
  }

  package var name: String {
    byte.map { "Ctrl-\(Character(Unicode.Scalar($0 + 0x40)))" } ?? "none"
  }
}

/// Looks for the detach key in what is typed.
package struct DetachFilter: Sendable {
  package struct Result: Sendable, Hashable {
    /// What goes to the guest.
    package var forward: [UInt8]
    /// Whether the key was typed; what came after it is dropped.
    package var detached: Bool

    package init(forward: [UInt8], detached: Bool) {
      self.forward = forward
      self.detached = detached
    }
  }

  private let key: DetachKey
  private var detached = false

  package init(key: DetachKey) { self.key = key }

  package mutating func feed(_ bytes: some Sequence<UInt8>) -> Result {
    guard !detached else { return Result(forward: [], detached: true) }
    var forward: [UInt8] = []
    for byte in bytes {
      if byte == key.byte {
        detached = true
        break
      }
      forward.append(byte)
    }
    return Result(forward: forward, detached: detached)
  }
}
