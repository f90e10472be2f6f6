import BMC
import JSON
import Logging
import SoftHost
import TestBMC
import TestSupport
import Testing

/// BMCs as they are: away, slow, lying, half-mute, overloaded, with other passwords and certificates. The controller talks
/// to a BMC of the test, which hands what it wants on to the real server's.
@Suite("Faults of BMCs", .serialized, .cloud("yca2", hosts: 1, subnet: "192.168.93.1/24"))
struct BMCFaultTests {
  @Test("A BMC that cannot be reached holds a machine up, which says so and goes on when it is back")
  func unreachable() async throws {
    let cloud = try CloudUnderTest.running
    let spec = try await cloud.bmcSpec()
    try await cloud.patchBMC(["address": "redfish+https://127.0.0.1:1"])
    try await cloud.eventuallyBMC(reachable: false, mentions: "127.0.0.1:1")
    try await cloud.apply(MachineManifest(name: "away").json)
    try await eventually(within: .seconds(60), every: .milliseconds(200)) {
      try await cloud.object("bmm", "away")?["status"]?["message"]?.stringValue?.contains("host-01") == true
    }
    #expect(try await cloud.phase("away") != "Running")
    try await cloud.patchBMC(spec)
    try await cloud.eventuallyRunning("away")
    try await cloud.deleteAndCheck("away")
  }

  @Test("A machine comes up behind a BMC that takes ten seconds for every answer")
  func slow() async throws {
    try await withMeddledBMC { cloud, meddler, _ in
      meddler.meddle { request, next in
        try? await Task.sleep(for: .seconds(10))
        return await next(request)
      }
      try await cloud.apply(MachineManifest(name: "slow").json)
      try await eventually(within: .seconds(300), every: .milliseconds(500)) {
        try await cloud.phase("slow") == "Running"
      }
      meddler.meddle(nil)
      try await cloud.deleteAndCheck("slow")
    }
  }

  @Test("A BMC that says off five seconds early does not get a disk taken from a running server")
  func lying() async throws {
    try await withMeddledBMC { cloud, _, relay in
      try await cloud.apply(MachineManifest(name: "liar").json)
      try await cloud.eventuallyRunning("liar")
      await relay.lie(for: .seconds(5))
      try await cloud.kubectl("delete", "bmm", "liar", "--wait=false")
      // The attachment is what stands between the disk and anybody else: it must outlast the server's power.
      try await eventually(within: .seconds(120), every: .milliseconds(100)) {
        let isReleased = try await cloud.objects("volumeattachment").contains {
          $0["metadata"]?["deletionTimestamp"] == nil
        }
        guard !isReleased else { return false }
        #expect(try await relay.truth() == .off, "the disk was given up while the server was on")
        return true
      }
      await relay.lie(for: .zero)
      try await cloud.deleteAndCheck("liar")
    }
  }

  @Test("Fields that are null are no answer: the machine waits, and goes on when they are there")
  func nulls() async throws {
    try await withMeddledBMC { cloud, meddler, _ in
      meddler.changeSystem { system in
        for field in ["PowerState", "ProcessorSummary", "MemorySummary", "Boot"] { system[field] = .null }
      }
      try await eventually(within: .seconds(90), every: .milliseconds(200)) {
        try await cloud.object("bmh", "host-01")?["status"]?["power"]?.stringValue == "Unknown"
      }
      try await cloud.apply(MachineManifest(name: "mute").json)
      try await eventually(within: .seconds(60), every: .milliseconds(200)) {
        let message = try await cloud.object("bmm", "mute")?["status"]?["message"]?.stringValue
        return message?.isEmpty == false
      }
      #expect(try await cloud.phase("mute") != "Running")
      meddler.meddle(nil)
      try await cloud.eventuallyRunning("mute")
      try await cloud.deleteAndCheck("mute")
    }
  }

  @Test("A BMC that is overloaded is asked again, not given up")
  func unavailable() async throws {
    try await withMeddledBMC { cloud, meddler, _ in
      meddler.meddle { _, _ in RedfishReply(status: 503, headers: ["Retry-After": "1"]) }
      try await cloud.apply(MachineManifest(name: "busy").json)
      try await cloud.eventuallyBMC(reachable: false, mentions: "503")
      #expect(try await cloud.phase("busy") != "Running")
      meddler.meddle(nil)
      try await cloud.eventuallyRunning("busy")
      try await cloud.deleteAndCheck("busy")
    }
  }

  @Test("A wrong password is tried once or twice, not until the account is locked; the one before stays in use")
  func wrongPassword() async throws {
    try await withMeddledBMC { cloud, meddler, _ in
      let before = meddler.passwordsTried
      try await cloud.writeCredentials(password: "wrong")
      // An account that works is read again after minutes only, or when somebody asks for it.
      try await cloud.kubectl("annotate", "bmh", "host-01", "--overwrite", "iaas.yusur.io/rescan-requested=now")
      try await cloud.eventuallyHost("CredentialsCurrent", "False", mentions: CloudUnderTest.testSecret)
      // Whatever asks for the host's power now must not try the password again.
      try await cloud.apply(MachineManifest(name: "locked").json)
      try await cloud.eventuallyRunning("locked")
      // A start looks at the power a dozen times.
      #expect(meddler.passwordsTried - before <= 8, "each account a session and a Basic attempt, at most twice")
      let log = try await cloud.object("bmh", "host-01")?.text ?? ""
      #expect(!log.contains("\"wrong\""), "no password in a status")
      try await cloud.writeCredentials(password: rightCredentials.password)
      try await cloud.eventuallyHost("CredentialsCurrent", nil)
      try await cloud.eventuallyBMC(reachable: true)
      try await cloud.deleteAndCheck("locked")
    }
  }

  @Test("A certificate that another authority signed is refused by name")
  func wrongCertificate() async throws {
    let cloud = try CloudUnderTest.running
    let spec = try await cloud.bmcSpec()
    let key = "\(cloud.directory)/other.key"
    let certificate = "\(cloud.directory)/other.crt"
    try await command(
      "openssl",
      [
        "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", "/CN=other",
        "-days", "2", "-keyout", key, "-out", certificate,
      ])
    let bundle = try await command("base64", ["-w0", certificate])
    try await cloud.patchBMC(["caBundle": .string(bundle)])
    try await cloud.eventuallyBMC(reachable: false, mentions: "certificate")
    try await cloud.patchBMC(spec)
    try await cloud.eventuallyBMC(reachable: true)
  }
}

/// Has the controller talk to a BMC of the test while `body` runs.
private func withMeddledBMC(
  _ body: @escaping @Sendable (CloudUnderTest, Meddler, RelayChassis) async throws -> Void
) async throws {
  let cloud = try CloudUnderTest.running
  let spec = try await cloud.bmcSpec()
  let address = try #require(spec["address"]?.stringValue)
  let authority = try #require(spec["caBundle"]?.stringValue)
  let pem = try await command("sh", ["-c", "printf %s \"$1\" | base64 -d", "sh", authority])
  let pool = BMCClientPool(logger: Logger(label: "test"))
  do {
    let server = try pool.client(
      for: try BMCAddress(address), credentials: try await cloud.credentials("bmc-host-01"),
      trust: .authorities(pem: pem))
    let relay = RelayChassis(server: server)
    try await withTestBMC(of: relay) { address, meddler in
      try await cloud.writeCredentials(password: rightCredentials.password)
      try await cloud.patchBMC([
        "address": .string(address.description), "caBundle": .null,
        "credentialsSecretRef": ["name": .string(CloudUnderTest.testSecret)],
      ])
      try await eventually(within: .seconds(30)) { !meddler.requests.isEmpty }
      try await cloud.eventuallyBMC(reachable: true)
      do {
        try await body(cloud, meddler, relay)
      } catch {
        try await cloud.patchBMC(spec)
        throw error
      }
      try await cloud.patchBMC(spec)
    }
  } catch {
    try await pool.shutdown()
    throw error
  }
  try await pool.shutdown()
}

extension CloudUnderTest {
  static let testSecret = "bmc-of-the-test"

  /// How the controller reaches the BMC of the only host.
  func bmcSpec() async throws -> JSONValue {
    try #require(try await object("bmh", "host-01")?["spec"]?["bmc"])
  }

  func patchBMC(_ change: JSONValue) async throws {
    let patch: JSONValue = ["spec": ["bmc": change]]
    try await kubectl("patch", "bmh", "host-01", "--type=merge", "-p", patch.text)
  }

  func credentials(_ secret: String) async throws -> BMCCredentials {
    let data = try JSONValue.parse(
      try await kubectl("get", "secret", secret, "-n", "ycloud-system", "-o", "json"))["data"]
    func field(_ name: String) async throws -> String {
      let text = try #require(data?[name]?.stringValue)
      return try await command("sh", ["-c", "printf %s \"$1\" | base64 -d", "sh", text])
    }
    return BMCCredentials(username: try await field("username"), password: try await field("password"))
  }

  /// Makes or changes the secret with which the controller logs in to the test's BMC.
  func writeCredentials(password: String) async throws {
    try await apply([
      "apiVersion": "v1", "kind": "Secret",
      "metadata": ["name": .string(Self.testSecret), "namespace": "ycloud-system"],
      "stringData": ["username": .string(rightCredentials.username), "password": .string(password)],
    ])
  }

  func eventuallyBMC(reachable: Bool, mentions text: String = "") async throws {
    try await eventuallyHost("BMCReachable", reachable ? "True" : "False", mentions: text)
  }

  /// Waits until a condition of the host has a status; nil for one that is not there.
  func eventuallyHost(_ type: String, _ status: String?, mentions text: String = "") async throws {
    try await eventually(within: .seconds(120), every: .milliseconds(200), "\(type) is \(status ?? "gone")") {
      let conditions = try await self.object("bmh", "host-01")?["status"]?["conditions"]?.arrayValue
      let condition = conditions?.first { $0["type"]?.stringValue == type }
      return condition?["status"]?.stringValue == status
        && (text.isEmpty || condition?["message"]?.stringValue?.contains(text) == true)
    }
  }

  func deleteAndCheck(_ machine: String) async throws {
    try await kubectl("delete", "bmm", machine, "--ignore-not-found", "--timeout", "120s")
    try await eventually(within: .seconds(60), every: .milliseconds(200)) {
      try await self.leftovers(of: machine).isEmpty
    }
  }
}
