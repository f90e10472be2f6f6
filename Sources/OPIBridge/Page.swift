package import GRPCCore

/// One page of a list (AIP-158). A token names the last resource of the page before, so that it survives a restart, and
/// a list that changes meanwhile neither repeats nor skips what stays.
package struct Page: Sendable {
  package let size: Int
  private let after: String?

  package static let standardSize = 50
  package static let largestSize = 250

  /// - Parameter scope: what is listed; a token of another list is refused.
  package init(size: Int32, token: String, scope: String) throws(RPCError) {
    guard size >= 0 else { throw .invalid("page_size", "\(size)", "is negative") }
    self.size = size == 0 ? Self.standardSize : min(Int(size), Self.largestSize)
    guard !token.isEmpty else {
      after = nil
      return
    }
    guard let text = Self.decode(token), let cut = text.firstIndex(of: " "), text[..<cut] == scope[...] else {
      throw .invalid("page_token", token, "is none of this list; begin without one")
    }
    after = String(text[text.index(after: cut)...])
  }

  /// The names of this page, and the token of the next one; empty at the end.
  package func cut(_ names: [String], scope: String) -> (names: [String], next: String) {
    let rest = names.sorted().filter { name in after.map { $0 < name } ?? true }
    let page = Array(rest.prefix(size))
    guard rest.count > size, let last = page.last else { return (page, "") }
    return (page, Self.encode("\(scope) \(last)"))
  }

  private static func encode(_ text: String) -> String {
    text.utf8.map { byte in
      let digits = String(byte, radix: 16)
      return digits.count == 1 ? "0" + digits : digits
    }.joined()
  }

  private static func decode(_ token: String) -> String? {
    let digits = Array(token.utf8)
    guard digits.count % 2 == 0, digits.count <= 2048 else { return nil }
    var bytes: [UInt8] = []
    for index in stride(from: 0, to: digits.count, by: 2) {
      guard let byte = UInt8(String(decoding: digits[index...index + 1], as: UTF8.self), radix: 16) else { return nil }
      bytes.append(byte)
    }
    return String(validating: bytes, as: UTF8.self)
  }
}
