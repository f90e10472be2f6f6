import JSON
import Kubernetes
import TestSupport
import Testing

#if canImport(FoundationEssentials)
  import FoundationEssentials
#else
  import Foundation
#endif

@Suite struct ConditionTests {
  private let early = Timestamp("2026-01-01T00:00:00Z")!
  private let late = Timestamp("2026-01-02T00:00:00Z")!

  @Test func aNewConditionIsAppended() {
    var conditions: [Condition] = []
    let changed = conditions.set("Ready", .false, reason: "Waiting", message: "for a host", now: early)
    #expect(changed)
    #expect(conditions.condition("Ready")?.lastTransitionTime == early)
    #expect(!conditions.isTrue("Ready"))
  }

  @Test func theSameConditionChangesNothing() {
    var conditions: [Condition] = []
    conditions.set("Ready", .true, reason: "Up", message: "ok", now: early)
    let before = conditions
    let changed = conditions.set("Ready", .true, reason: "Up", message: "ok", now: late)
    #expect(!changed)
    #expect(conditions == before)
  }

  @Test func anotherReasonKeepsTheTransitionTime() {
    var conditions: [Condition] = []
    conditions.set("Ready", .false, reason: "A", message: "a", now: early)
    let changed = conditions.set("Ready", .false, reason: "B", message: "b", now: late)
    #expect(changed)
    #expect(conditions.condition("Ready")?.lastTransitionTime == early)
  }

  @Test func anotherStatusIsATransitionAndKeepsThePlace() {
    var conditions: [Condition] = []
    conditions.set("A", .true, reason: "A", message: "", now: early)
    conditions.set("B", .true, reason: "B", message: "", now: early)
    conditions.set("A", .false, reason: "A", message: "", now: late)
    #expect(conditions.map(\.type) == ["A", "B"])
    #expect(conditions.condition("A")?.lastTransitionTime == late)
    let removed = conditions.remove("A")
    #expect(removed)
    #expect(conditions.map(\.type) == ["B"])
  }

  @Test func anEndlessMessageIsCut() {
    var conditions: [Condition] = []
    conditions.set("A", .true, reason: "A", message: String(repeating: "é", count: 100_000))
    #expect((conditions.condition("A")?.message.utf8.count ?? 0) <= 32_768)
    conditions.set("A", .true, reason: "A", message: String(repeating: "👩‍👩‍👧‍👦", count: 10_000))
    let length = conditions.condition("A")?.message.utf8.count ?? 0
    #expect(length <= 32_768 && length > 30_000)
  }
}

@Suite struct TimestampTests {
  @Test(
    arguments: [
      ("1970-01-01T00:00:00Z", 0.0), ("2000-02-29T12:34:56Z", 951_827_696),
      ("2026-11-20T21:00:00+02:00", 1_795_201_200),
      ("2026-11-20T21:00:00.999Z", 1_795_208_400), ("1969-12-31T23:59:59Z", -1),
      ("2100-03-01T00:00:00Z", 4_107_542_400),
    ])
  func parsesRFC3339(text: String, seconds: Double) {
    #expect(Timestamp(text)?.date.timeIntervalSince1970 == seconds)
  }

  @Test(
    arguments: [
      "", "2026-11-20", "2026-13-01T00:00:00Z", "2026-02-30T00:00:00Z", "2026-01-01T24:00:00Z", "2026-01-01T00:00:00",
      "2026-01-01T00:00:00.Z", "2026-01-01T00:00:00+2:00", "x", "2026-01-01T00:00:00Zx", "20260-01-01T00:00:00Z",
    ])
  func refusesWhatIsNoTime(text: String) { #expect(Timestamp(text) == nil) }

  @Test func printsWhatItParsed() {
    var random = SeededGenerator(seed: 3)
    for _ in 0..<5000 {
      let seconds = Double(Int64(random.next() % 8_000_000_000) - 1_000_000_000)
      let time = Timestamp(Date(timeIntervalSince1970: seconds))
      #expect(Timestamp(time.description) == time)
      let micro = MicroTimestamp(microseconds: Int64(seconds) * 1_000_000 + Int64(random.next() % 1_000_000))
      #expect(MicroTimestamp(micro.description) == micro)
    }
    #expect(MicroTimestamp(microseconds: 1_500_000).description == "1970-01-01T00:00:01.500000Z")
  }

  @Test func randomTextNeverTraps() {
    var random = SeededGenerator(seed: 4)
    let alphabet = Array("0123456789-:TZ.+".utf8)
    for _ in 0..<20_000 {
      let text = (0..<Int(random.next() % 30)).map { _ in alphabet[Int(random.next() % UInt64(alphabet.count))] }
      _ = Timestamp(String(decoding: text, as: UTF8.self))?.description
    }
  }
}

@Suite struct ObjectTests {
  @Test func aSecretDoesNotShowItsValues() {
    let secret = Secret(
      metadata: ObjectMeta(name: "s", namespace: "n"), data: ["password": Data("hunter2".utf8)],
      stringData: ["token": "abcdef"])
    var dumped = ""
    dump(secret, to: &dumped)
    for text in ["\(secret)", String(reflecting: secret), dumped] {
      #expect(!text.contains("hunter2"))
      #expect(!text.contains("abcdef"))
      #expect(!text.contains("aHVudGVy"))
    }
    #expect(secret.string("password") == "hunter2")
  }

  @Test func anEmptySecretValueMayBeNull() throws {
    let json = Data(#"{"metadata":{"name":"s"},"data":{"empty":null,"k":"aGk="}}"#.utf8)
    let secret = try JSONDecoder().decode(Secret.self, from: json)
    #expect(secret.string("empty") == "")
    #expect(secret.string("k") == "hi")
  }

  @Test func aConfigurationDoesNotShowItsCredentials() {
    var configuration = ClientConfiguration(server: "https://a")
    configuration.credential = .token("hunter2")
    configuration.clientCertificate = .init(chain: .pem("hunter2"), key: .pem("hunter2"))
    for credential in [configuration.credential, .basic(username: "u", password: "hunter2")] {
      configuration.credential = credential
      var dumped = ""
      dump(configuration, to: &dumped)
      dump(credential, to: &dumped)
      for text in ["\(configuration)", String(reflecting: configuration), "\(credential)", dumped] {
        #expect(!text.contains("hunter2"))
      }
    }
  }

  @Test func aSelectorMatchesLikeTheServer() {
    let selector = LabelSelector(
      matchLabels: ["a": "1"],
      matchExpressions: [
        .init(key: "b", operator: "In", values: ["x", "y"]), .init(key: "c", operator: "DoesNotExist"),
        .init(key: "d", operator: "NotIn", values: ["bad"]), .init(key: "e", operator: "Exists"),
      ])
    #expect(selector.matches(["a": "1", "b": "x", "e": ""]))
    #expect(!selector.matches(["a": "1", "b": "z", "e": ""]))
    #expect(!selector.matches(["a": "1", "b": "x", "c": "", "e": ""]))
    #expect(!selector.matches(["a": "1", "b": "x", "d": "bad", "e": ""]))
    #expect(!selector.matches(["a": "1", "b": "x"]))
    #expect(LabelSelector().matches(nil))
    #expect(!LabelSelector(matchExpressions: [.init(key: "a", operator: "Near")]).matches(["a": "1"]))
  }

  @Test func dynamicObjectsShowTheirMetadata() throws {
    let object = DynamicObject(
      content: [
        "apiVersion": "v1", "kind": "Thing",
        "metadata": ["name": "n", "namespace": "ns", "uid": "u", "labels": ["a": "b"], "resourceVersion": "12"],
        "spec": ["x": 1],
      ])
    #expect(object.key == ObjectKey(namespace: "ns", name: "n"))
    #expect(object.metadata.labels == ["a": "b"])
    #expect(object["spec"]?["x"] == 1)
  }

  @Test(
    arguments: [
      ("https://10.0.0.1:6443", "https", "10.0.0.1", 6443, ""), ("http://[::1]:80/k8s/", "http", "::1", 80, "/k8s"),
      ("example.org", "https", "example.org", nil, ""), ("HTTPS://a/b/c", "https", "a", nil, "/b/c"),
    ] as [(String, String, String, Int?, String)])
  func serverURLs(text: String, scheme: String, host: String, port: Int?, path: String) throws {
    let url = try ServerURL(text)
    #expect(url.scheme == scheme)
    #expect(url.host == host)
    #expect(url.port == port)
    #expect(url.path == path)
  }

  @Test(arguments: ["", "https://", "ftp://a", "https://a:b", "https://[::1", "https://a:99999"])
  func refusesOtherURLs(text: String) {
    #expect(throws: KubernetesError.self) { try ServerURL(text) }
  }
}
