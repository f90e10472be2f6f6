import JSON
import TestSupport
import Testing

/// The main job: a machine from a manifest, its life, and nothing left after it.
@Suite("The life of a machine", .serialized, .cloud("yca0", subnet: "192.168.91.1/24"))
struct MachineLifeTests {
  @Test("A machine boots from a clone, answers ping, and leaves nothing when deleted")
  func firstLight() async throws {
    let cloud = try CloudUnderTest.running
    try await cloud.apply(MachineManifest(name: "first").json)
    try await cloud.bmctl("wait", "first", "--for", "Running", "--timeout", "180")

    let machine = try #require(try await cloud.object("bmm", "first"))
    let address = try #require(machine["status"]?["addresses"]?[0]?["address"]?.stringValue)
    try await command("ping", ["-c", "1", "-W", "2", address])
    #expect(try await cloud.bmctl("timeline", "first").contains("answers ping"))
    // The server's screen, by bm-api and the BMC: a PNG, which is nobody else's.
    let picture = "\(cloud.directory)/screen.png"
    try await cloud.bmctl("screenshot", "first", "-o", picture)
    #expect(try await command("stat", ["-c", "%a", picture]) == "600\n")
    #expect(try await command("od", ["-An", "-tx1", "-N8", picture]) == " 89 50 4e 47 0d 0a 1a 0a\n")
    await #expect(throws: CommandFailure.self) { try await cloud.bmctl("screenshot", "none", "-o", picture) }

    let attachments = try await cloud.objects("volumeattachment")
    #expect(attachments.count == 1)
    #expect(attachments.first?["status"]?["attached"]?.boolValue == true)

    try await cloud.kubectl("delete", "bmm", "first", "--timeout", "120s")
    try await eventually(within: .seconds(30), every: .milliseconds(200)) {
      try await cloud.leftovers(of: "first").isEmpty
    }
  }

  @Test("Stop turns the server off and keeps its disk; start and restart boot it again from the same disk")
  func stopAndStart() async throws {
    let cloud = try CloudUnderTest.running
    try await cloud.apply(MachineManifest(name: "cycle").json)
    try await cloud.bmctl("wait", "cycle", "--for", "Running", "--timeout", "180")
    let volume = try await cloud.object("pvc", "cycle-root")?["spec"]?["volumeName"]?.stringValue
    let host = try #require(try await cloud.object("bmm", "cycle")?["status"]?["host"]?.stringValue)

    try await cloud.bmctl("stop", "cycle")
    try await cloud.bmctl("wait", "cycle", "--for", "Stopped", "--timeout", "120")
    #expect(try await cloud.object("bmh", host)?["status"]?["power"]?.stringValue == "Off")
    #expect(try await cloud.object("pvc", "cycle-root")?["spec"]?["volumeName"]?.stringValue == volume)

    try await cloud.bmctl("start", "cycle")
    try await cloud.bmctl("wait", "cycle", "--for", "Running", "--timeout", "180")
    #expect(try await cloud.object("pvc", "cycle-root")?["spec"]?["volumeName"]?.stringValue == volume)

    let boot = try #require(try await cloud.object("bmm", "cycle")?["status"]?["boot"]?.intValue)
    try await cloud.bmctl("restart", "cycle")
    try await cloud.bmctl("wait", "cycle", "--for", "Running", "--timeout", "180")
    #expect(try await cloud.object("bmm", "cycle")?["status"]?["boot"]?.intValue == boot + 1)
    #expect(try await cloud.object("pvc", "cycle-root")?["spec"]?["volumeName"]?.stringValue == volume)

    try await cloud.kubectl("delete", "bmm", "cycle", "--timeout", "120s")
    try await eventually(within: .seconds(30), every: .milliseconds(200)) {
      try await cloud.leftovers(of: "cycle").isEmpty
    }
  }

  @Test("Two machines that race for one host: one gets it, the other says why it waits and takes over later")
  func race() async throws {
    let cloud = try CloudUnderTest.running
    async let first: Void = cloud.apply(MachineManifest(name: "race-a", hostName: "host-01").json)
    async let second: Void = cloud.apply(MachineManifest(name: "race-b", hostName: "host-01").json)
    _ = try await (first, second)
    try await eventually(within: .seconds(120), every: .milliseconds(200)) {
      let phases = [try await cloud.phase("race-a"), try await cloud.phase("race-b")]
      return phases.contains("Running")
    }
    let winner = try await cloud.phase("race-a") == "Running" ? "race-a" : "race-b"
    let loser = winner == "race-a" ? "race-b" : "race-a"
    #expect(try await cloud.phase(loser) == "Pending")
    let claim = try await cloud.object("bmh", "host-01")?["status"]?["claim"]?["name"]?.stringValue
    #expect(claim == winner)
    let text = try #require(try await cloud.object("bmm", loser)).text
    #expect(text.contains("host-01"), "the waiting machine names the host that it waits for")

    try await cloud.kubectl("delete", "bmm", winner, "--timeout", "120s")
    try await cloud.bmctl("wait", loser, "--for", "Running", "--timeout", "180")
    try await cloud.kubectl("delete", "bmm", loser, "--timeout", "120s")
    try await eventually(within: .seconds(30), every: .milliseconds(200)) {
      let left = try await cloud.leftovers(of: winner) + cloud.leftovers(of: loser)
      return left.isEmpty
    }
  }

  @Test("A machine that cannot be made says what is wrong and can be deleted", arguments: WrongMachine.allCases)
  func wrongMachine(_ wrong: WrongMachine) async throws {
    let cloud = try CloudUnderTest.running
    let name = "wrong-\(wrong.rawValue)"
    try await cloud.apply(wrong.manifest(name: name).json)
    try await eventually(within: .seconds(30), every: .milliseconds(200)) {
      let machine = try await cloud.object("bmm", name)
      return wrong.expected.allSatisfy { machine?["status"]?["conditions"]?.text.contains($0) == true }
    }
    #expect(try await cloud.phase(name) != "Running")
    try await cloud.kubectl("delete", "bmm", name, "--timeout", "60s")
    try await eventually(within: .seconds(30), every: .milliseconds(200)) {
      try await cloud.leftovers(of: name).isEmpty
    }
  }

  @Test("When nothing changes, nothing is written to the API server but leases")
  func quiet() async throws {
    let cloud = try CloudUnderTest.running
    try await cloud.apply(MachineManifest(name: "quiet").json)
    try await cloud.bmctl("wait", "quiet", "--for", "Running", "--timeout", "180")
    // The first reading may still see the last writes of the start; two equal readings in a row are quiet.
    try await eventually(within: .seconds(90), every: .milliseconds(200)) {
      let before = try await cloud.writes()
      try await Task.sleep(for: .seconds(10))
      return try await cloud.writes() == before
    }
    try await cloud.kubectl("delete", "bmm", "quiet", "--timeout", "120s")
  }
}

/// Manifests that a controller must refuse with a condition, and words that the condition must hold.
enum WrongMachine: String, CaseIterable, Sendable {
  case noImage = "image"
  case tooSmall = "size"
  case badCloudInit = "cloudinit"
  case noSuchHost = "host"

  func manifest(name: String) -> MachineManifest {
    var manifest = MachineManifest(name: name)
    switch self {
    case .noImage: manifest.source = "no-such-image"
    case .tooSmall: manifest.size = "1Mi"
    case .badCloudInit: manifest.userData = "#cloud-config\nusers: [unclosed\n"
    case .noSuchHost: manifest.hostName = "host-99"
    }
    return manifest
  }

  var expected: [String] {
    switch self {
    case .noImage: ["no-such-image"]
    case .tooSmall: ["1Mi"]
    case .badCloudInit: ["userData"]
    case .noSuchHost: ["host-99"]
    }
  }
}

extension CloudUnderTest {
  /// How many writes the API server took so far, by resource; leases and the control plane's own bookkeeping left out.
  func writes() async throws -> [String: Int] {
    var counts: [String: Int] = [:]
    for line in try await kubectl("get", "--raw", "/metrics").split(separator: "\n")
    where line.hasPrefix("apiserver_request_total{") && !line.contains("resource=\"leases\"") {
      guard ["POST", "PUT", "PATCH", "DELETE", "APPLY"].contains(where: { line.contains("verb=\"\($0)\"") }),
        let count = line.split(separator: " ").last.flatMap({ Double($0) })
      else { continue }
      let resource = line.split(separator: "resource=\"").dropFirst().first?.prefix { $0 != "\"" } ?? "?"
      // Reviews are how requests are authorised; they store nothing.
      if resource.hasSuffix("reviews") { continue }
      counts[String(resource), default: 0] += Int(count)
    }
    return counts
  }
}
