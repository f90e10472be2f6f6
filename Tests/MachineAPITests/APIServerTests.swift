import IaaS
import JSON
import Kubernetes
import Logging
import MachineAPI
import TestSupport
import Testing

/// Through kube-apiserver's aggregation, and at bm-api's own door.
@Suite(.timeLimit(.minutes(5)), .serialized) struct APIServerTests {
  private func failure(_ body: () async throws -> Void) async throws -> KubernetesError {
    do {
      try await body()
    } catch let error as KubernetesError {
      return error
    }
    throw TestEnvironmentError("the call succeeded, but should have failed")
  }

  @Test func rightsDecideWhoMaySwitchAMachine() async throws {
    let installation = try await Installation.start()
    let path = installation.path("stop")
    // Edit may, view and other namespaces' administrators may not.
    let alice = try installation.client(as: "alice")
    let bob = try installation.client(as: "bob")
    let mallory = try installation.client(as: "mallory")
    for client in [bob, mallory] {
      let error = try await failure { _ = try await client.request(method: "PUT", path: path) }
      #expect(error.code == .forbidden, "\(error)")
    }
    #expect(try await installation.machineObject().spec.running)
    let dry = try await alice.request(method: "PUT", path: path, query: [("dryRun", "All")])
    #expect(dry["status"]?.stringValue == "Success")
    #expect(try await installation.machineObject().spec.running)
    let answer = try await alice.request(method: "PUT", path: path)
    #expect(answer["message"]?.stringValue == "bm-01 stops")
    #expect(try await !installation.machineObject().spec.running)
    let again = try await alice.request(method: "PUT", path: path)
    #expect(again["message"]?.stringValue == "bm-01 is wanted to be off already")
    let conflict = try await failure { _ = try await alice.request(method: "PUT", path: installation.path("reset")) }
    #expect(conflict.code == .conflict)
    #expect(conflict.message.contains("spec.running is false"))
    let unknown = try await failure {
      _ = try await alice.request(method: "PUT", path: path, body: ["force": true])
    }
    #expect(unknown.causes.first?.field == "force")
    let stale = try await failure {
      _ = try await alice.request(
        method: "PUT", path: installation.path("start"), body: ["preconditions": ["resourceVersion": "1"]])
    }
    #expect(stale.code == .conflict)
    _ = try await alice.request(method: "PUT", path: installation.path("start"))
    _ = try await alice.request(method: "PUT", path: installation.path("reset"), body: ["requestID": "one"])
    let machine = try await installation.machineObject()
    #expect(machine.metadata.annotations?[Names.restartAnnotation] == "reset:one")
    let missing = try await failure {
      _ = try await alice.request(method: "PUT", path: installation.path("start", machine: "none"))
    }
    #expect(missing.code == .notFound)

    // Looking is for those who may look; the plan is the planner's own.
    let timeline = try await bob.request(method: "GET", path: installation.path("timeline"))
    #expect(timeline["phase"]?.stringValue == "Running")
    let plan = try await bob.request(method: "GET", path: installation.path("plan"))
    #expect(plan["kind"]?.stringValue == "MachinePlan")
    #expect(plan["steps"]?.arrayValue?.isEmpty == false, "\(plan.text)")
    #expect(
      try await failure { _ = try await mallory.request(method: "GET", path: installation.path("plan")) }.code
        == .forbidden)

    // A disk that the API server's schema refuses is refused in its words.
    let disk: JSONValue = ["name": "data", "template": ["size": "1Gi"]]
    _ = try await alice.request(method: "PUT", path: installation.path("adddisk"), body: ["disk": disk])
    #expect(try await installation.machineObject().spec.disks.map(\.name) == ["root", "data"])
    let invalid = try await failure {
      _ = try await alice.request(
        method: "PUT", path: installation.path("adddisk"), body: ["disk": ["name": "x", "template": ["size": "none"]]])
    }
    #expect(invalid.code == .invalid, "\(invalid)")
    _ = try await alice.request(method: "PUT", path: installation.path("removedisk"), body: ["name": "data"])
    #expect(try await installation.machineObject().spec.disks.map(\.name) == ["root"])

    // kubectl reads the group's documents, and its own still work.
    let list = try await installation.plane.kubectl("get", "--raw", "/apis/\(Names.subresourceGroup)/v1")
    #expect(list.contains("baremetalmachines/console"))
    _ = try await installation.plane.kubectl("api-resources")
    try await eventually(within: .seconds(60), every: .milliseconds(500), "the schema is merged") {
      try await installation.plane.kubectl("get", "--raw", "/openapi/v2").contains(
        "replaceSubresourcesV1NamespacedBareMetalMachineStart")
    }
  }

  /// At bm-api's own door: headers are believed of the front proxy alone.
  @Test func nobodyElseSpeaksForOthers() async throws {
    let installation = try await Installation.start()
    let plane = installation.plane
    let url = "https://127.0.0.1:\(installation.port)\(installation.path("stop"))"
    func call(_ arguments: [String], method: String = "PUT") async throws -> Int {
      let text = try await ChildProcess.run(
        "curl",
        [
          "-s", "-o", "/dev/null", "-w", "%{http_code}", "--cacert", plane.certificateAuthority, "-X", method,
          "-m", "20",
        ] + arguments + [url])
      return Int(text) ?? 0
    }
    func certificate(_ name: String) -> [String] {
      ["--cert", plane.directory.file("\(name).crt"), "--key", plane.directory.file("\(name).key")]
    }
    let root = ["-H", "X-Remote-User: admin", "-H", "X-Remote-Group: system:masters"]
    // What is told beside a certificate, in the order of this list: nothing; of the users' authority; of the proxy's
    // authority under another name; expired; for servers only.
    try await plane.issue("alice", subject: "/CN=alice")
    try await plane.issue("rogue", subject: "/CN=rogue-proxy", authority: "proxy-ca")
    try await plane.issue("expired", subject: "/CN=front-proxy-client", authority: "proxy-ca", days: -1)
    try await plane.issue(
      "server-only", subject: "/CN=front-proxy-client", authority: "proxy-ca",
      extensions: ["extendedKeyUsage=serverAuth"])
    #expect(try await call(root) == 401)
    #expect(try await call(root + certificate("rogue")) == 401)
    #expect(try await call(root + certificate("expired")) == 401)
    #expect(try await call(root + certificate("server-only")) == 401)
    // A user's own certificate: the user it names, whatever the headers say.
    try await plane.issue("bob", subject: "/CN=bob")
    #expect(try await call(root + certificate("bob")) == 403)
    #expect(try await installation.machineObject().spec.running)
    #expect(try await call(root + certificate("proxy")) == 200)
    #expect(try await !installation.machineObject().spec.running)
    #expect(try await call(certificate("alice")) == 200)
    #expect(try await call(["-H", "Authorization: Bearer \(TestControlPlane.adminToken)"]) == 200)
    #expect(try await call(["-H", "Authorization: Bearer \(TestControlPlane.plainToken)"]) == 403)
    #expect(try await call(["-H", "Authorization: Bearer nonsense"]) == 401)
    // Too much is not read.
    let body = try plane.directory.write("body", String(repeating: " ", count: 70_000))
    #expect(try await call(certificate("alice") + ["-H", "Expect:", "--data-binary", "@\(body)"]) == 413)
    // Where the API server is away, nobody may do anything.
    plane.killAPIServer()
    try await plane.issue("carol", subject: "/CN=carol")
    #expect(try await call(certificate("carol")) == 503)
  }
}
