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
    let first = try #require(census.enter(from: nil))
    let second = try #require(census.enter(from: nil))
    #expect(census.enter(from: nil) == nil)
    let known = census.recognize(first, isProxy: false)
    let third = try #require(census.enter(from: nil))
    census.leave(second)
    census.leave(third)
    census.leave(known)
    #expect(census.enter(from: nil) != nil)
  }

  @Test func oneAddressDoesNotKeepOutOthers() throws {
    let census = ConnectionCensus(strangersMax: 4, connectionsMax: 16)
    let loud = [census.enter(from: "a"), census.enter(from: "a")].compactMap { $0 }
    #expect(loud.count == 2 && census.enter(from: "a") == nil)
    var other = try #require(census.enter(from: "b"))
    // Those who are known count for their address, up to a quarter of all; the front proxy's do not.
    var known = loud.map { census.recognize($0, isProxy: false) }
    for _ in 0..<2 { known.append(census.recognize(try #require(census.enter(from: "a")), isProxy: false)) }
    #expect(known.count == 4 && census.enter(from: "a") == nil)
    let proxied = known.removeLast()
    let proxy = census.recognize(proxied, isProxy: true)
    #expect(census.recognize(proxy, isProxy: true) == proxy)
    known.append(try #require(census.enter(from: "a")))
    #expect(census.enter(from: "a") == nil)
    // Everything is given back.
    other = census.recognize(other, isProxy: true)
    for place in known + [other, proxy] { census.leave(place) }
    #expect([census.enter(from: "a"), census.enter(from: "a")].compactMap { $0 }.count == 2)
    #expect(census.enter(from: "a") == nil && census.enter(from: "b") != nil)
  }
}
