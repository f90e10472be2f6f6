import MachineAPI
import TestSupport
import Testing

@Suite struct TrustTests {
  private static let data = [
    "requestheader-client-ca-file": "PEM", "requestheader-allowed-names": #"["front-proxy-client"]"#,
    "requestheader-username-headers": #"["X-Remote-User"]"#, "requestheader-group-headers": #"["X-Remote-Group"]"#,
    "requestheader-extra-headers-prefix": #"["X-Remote-Extra-"]"#,
  ]

  @Test func theFrontProxySpeaksForSomebody() throws {
    let settings = try TrustSettings(configMap: Self.data)
    let identity = settings.identity(headers: [
      ("x-remote-user", "alice"), ("X-Remote-Group", "dev"), ("X-Remote-Group", "ops"),
      ("X-Remote-Extra-Acme.com%2Fscope", "read"), ("X-Remote-Extra-", "x"), ("X-Other", "y"),
    ])
    #expect(identity?.user == "alice")
    #expect(identity?.groups == ["dev", "ops"])
    #expect(identity?.extra == ["acme.com/scope": ["read"]])
    #expect(identity?.complete.groups == ["dev", "ops", "system:authenticated"])
  }

  @Test func whoeverNamesNobodyIsNobody() throws {
    let settings = try TrustSettings(configMap: Self.data)
    #expect(settings.identity(headers: [("X-Remote-Group", "system:masters")]) == nil)
    #expect(settings.identity(headers: [("X-Remote-User", "")]) == nil)
    #expect(try TrustSettings(configMap: [:]).identity(headers: [("X-Remote-User", "alice")]) == nil)
  }

  /// A list that cannot be read must not become an empty one, which allows every name.
  @Test(arguments: ["front-proxy-client", "{}", "[1]", "["]) func aListThatIsNoneIsRefused(text: String) {
    var data = Self.data
    data["requestheader-allowed-names"] = text
    #expect(throws: APIFailure.self) { try TrustSettings(configMap: data) }
  }

  @Test func whoIsAnonymousStaysSo() {
    let identity = Identity(user: "system:anonymous", groups: ["system:unauthenticated"])
    #expect(identity.complete == identity)
  }
}

@Suite struct ExpiringCacheTests {
  @Test func itNeverGrowsBeyondItsLimit() {
    let cache = ExpiringCache<Int, Int>(limit: 10)
    for number in 0..<1000 { cache.store(number, for: number, lasting: .seconds(60)) }
    #expect(cache[999] == 999)
    #expect((0..<1000).filter { cache[$0] != nil }.count <= 10)
    for _ in 0..<1000 { cache.store(1, for: 1, lasting: .seconds(60)) }
    #expect(cache[1] == 1)
    cache.store(2, for: 2, lasting: .zero)
    #expect(cache[2] == nil)
  }
}

@Suite struct CensusTests {
  @Test func strangersDoNotKeepOutOthers() throws {
    let census = ConnectionCensus(strangersMax: 2, connectionsMax: 4)
    let first = try #require(census.enter())
    let second = try #require(census.enter())
    #expect(census.enter() == nil)
    let known = census.recognize(first)
    let third = try #require(census.enter())
    census.leave(second)
    census.leave(third)
    census.leave(known)
    #expect(census.enter() != nil)
  }
}
