import JSON

/// Who calls.
package struct Identity: Sendable, Hashable {
  package var user: String
  package var uid: String?
  package var groups: [String]
  /// Further facts that an authenticator of the API server found, such as the scopes of a token.
  package var extra: [String: [String]]

  package static let authenticated = "system:authenticated"
  package static let unauthenticated = "system:unauthenticated"

  package init(user: String, uid: String? = nil, groups: [String] = [], extra: [String: [String]] = [:]) {
    self.user = user
    self.uid = uid
    self.groups = groups
    self.extra = extra
  }

  /// With the group that everybody has who is known, as the API server adds it.
  package var complete: Identity {
    guard !groups.contains(Self.authenticated), !groups.contains(Self.unauthenticated) else { return self }
    var copy = self
    copy.groups.append(Self.authenticated)
    return copy
  }
}

/// Whom to believe, from the ConfigMap `extension-apiserver-authentication` in `kube-system`, which kube-apiserver keeps.
package struct TrustSettings: Sendable, Hashable {
  package static let configMap = "extension-apiserver-authentication"
  package static let namespace = "kube-system"

  /// PEM of the authorities that sign the front proxy's certificate; empty where there is no front proxy.
  package var proxyAuthorities: String
  /// The common names that a front proxy may have; empty for any that the authority signed.
  package var proxyNames: [String]
  package var userHeaders: [String]
  package var groupHeaders: [String]
  package var extraPrefixes: [String]
  /// PEM of the authorities that sign users' certificates; empty where there are none.
  package var clientAuthorities: String

  package init(
    proxyAuthorities: String = "", proxyNames: [String] = [], userHeaders: [String] = [], groupHeaders: [String] = [],
    extraPrefixes: [String] = [], clientAuthorities: String = ""
  ) {
    self.proxyAuthorities = proxyAuthorities
    self.proxyNames = proxyNames
    self.userHeaders = userHeaders
    self.groupHeaders = groupHeaders
    self.extraPrefixes = extraPrefixes
    self.clientAuthorities = clientAuthorities
  }

  /// - Throws: `APIFailure` naming the key that is not a list of texts: a list of allowed names that cannot be read must
  ///   not become an empty one, which allows all.
  package init(configMap data: [String: String]) throws(APIFailure) {
    func list(_ key: String) throws(APIFailure) -> [String] {
      guard let text = data[key], !text.isEmpty else { return [] }
      guard let elements = (try? JSONValue.parse(text))?.arrayValue else {
        throw Self.unreadable(key)
      }
      var names: [String] = []
      for element in elements {
        guard let name = element.stringValue else { throw Self.unreadable(key) }
        names.append(name)
      }
      return names
    }
    self.init(
      proxyAuthorities: data["requestheader-client-ca-file"] ?? "",
      proxyNames: try list("requestheader-allowed-names"), userHeaders: try list("requestheader-username-headers"),
      groupHeaders: try list("requestheader-group-headers"),
      extraPrefixes: try list("requestheader-extra-headers-prefix"),
      clientAuthorities: data["client-ca-file"] ?? "")
  }

  private static func unreadable(_ key: String) -> APIFailure {
    APIFailure(
      500, "InternalError",
      "the key \(key) of the ConfigMap \(namespace)/\(configMap) is no JSON list of texts; restart kube-apiserver, which "
        + "writes it")
  }

  /// Whom the front proxy speaks for; nil where it names nobody. Only for requests that come from the front proxy.
  package func identity(headers: [(name: String, value: String)]) -> Identity? {
    func values(_ names: [String]) -> [String] {
      let wanted = Set(names.map { $0.lowercased() })
      return headers.filter { wanted.contains($0.name.lowercased()) }.map(\.value).filter { !$0.isEmpty }
    }
    guard let user = values(userHeaders).first else { return nil }
    var extra: [String: [String]] = [:]
    for prefix in extraPrefixes.map({ $0.lowercased() }) where !prefix.isEmpty {
      for header in headers where header.name.lowercased().hasPrefix(prefix) {
        // Keys are percent-encoded where they have characters that headers do not.
        let key = PercentText.decoded(String(header.name.lowercased().dropFirst(prefix.count)))
        extra[key ?? "", default: []].append(header.value)
      }
    }
    extra[""] = nil
    return Identity(user: user, groups: values(groupHeaders), extra: extra)
  }
}

/// Percent-encoded text (RFC 3986).
package enum PercentText {
  /// nil where an escape is not whole or the result is no UTF-8.
  package static func decoded(_ text: some StringProtocol) -> String? {
    var bytes: [UInt8] = []
    var rest = text.utf8.makeIterator()
    while let byte = rest.next() {
      guard byte == UInt8(ascii: "%") else {
        bytes.append(byte)
        continue
      }
      guard let high = rest.next().flatMap(digit), let low = rest.next().flatMap(digit) else { return nil }
      bytes.append(high << 4 | low)
    }
    return String(validating: bytes, as: UTF8.self)
  }

  private static func digit(_ byte: UInt8) -> UInt8? {
    switch byte {
    case UInt8(ascii: "0")...UInt8(ascii: "9"): byte - UInt8(ascii: "0")
    case UInt8(ascii: "a")...UInt8(ascii: "f"): byte - UInt8(ascii: "a") + 10
    case UInt8(ascii: "A")...UInt8(ascii: "F"): byte - UInt8(ascii: "A") + 10
    default: nil
    }
  }
}
