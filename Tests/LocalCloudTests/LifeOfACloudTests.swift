import Glibc
import JSON
import Kubernetes
import LocalCloud
import Logging
import TestSupport
import Testing

@Suite("The life of a local cloud", .serialized)
struct LifeOfACloudTests {
  /// A cloud of its own for one test, removed whatever happens.
  private func withCloud(
    name: String, subnet: String, _ body: (TestCloud) async throws -> Void
  ) async throws {
    try TestEnvironment.requireRoot(for: "a local cloud")
    let ycloud = try TestEnvironment.builtProduct("ycloud")
    let directory = try CloudDirectory(absolutePath: "/tmp/\(name)-\(getpid())")
    let cloud = TestCloud(ycloud: ycloud, directory: directory, name: name, subnet: subnet)
    do {
      try await body(cloud)
    } catch {
      _ = try? await cloud.down("--purge")
      throw error
    }
    try await cloud.down("--purge")
    // With the value in a variable, a failure shows what is left.
    let left = try await cloud.remains()
    #expect(left == [])
  }

  @Test("Up, killed, up again with everything kept, down, and nothing is left", .timeLimit(.minutes(5)))
  func life() async throws {
    try await withCloud(name: "yclife", subnet: "192.168.211.1/24") { cloud in
      try await cloud.up()
      try await cloud.run("status")
      #expect(try await cloud.host("host-01")["spec"]?["dpu"]?["node"] == "dpu-01")
      try await cloud.checkRights()
      try cloud.checkModes()
      let ports = try cloud.local.settings()?.ports

      // A second `up` of the same cloud starts nothing anew.
      let before = try cloud.pids()
      try await cloud.up()
      #expect(try cloud.pids() == before)

      // Dead at the same moment: the one that starts things again, the database, and the API server.
      for process in ["supervisor", "etcd", "kube-apiserver"] { kill(try cloud.pid(process), SIGKILL) }
      try await eventually { try cloud.local.state() == nil }
      try await cloud.up()
      #expect(try await cloud.host("host-01")["spec"]?["dpu"]?["node"] == "dpu-01")
      #expect(try cloud.local.settings()?.ports == ports)
      let after = try cloud.pids()
      for process in ["softdpu-host-01", "softhost-host-01", "dnsmasq", "kube-controller-manager"] {
        #expect(after[process] == before[process], "\(process) had no reason to be started again")
      }

      // Each part that dies alone comes back by itself.
      for process in after.keys.sorted() where process != "supervisor" && process != "kube-controller-manager" {
        kill(try #require(after[process]), SIGKILL)
      }
      try await eventually(within: .seconds(60), every: .milliseconds(100), "all parts ready after SIGKILL of each") {
        guard let state = try cloud.local.state(), state.isReady else { return false }
        return state.parts.allSatisfy { $0.pid == nil || $0.pid != after[$0.name] || $0.name.hasPrefix("kube-cont") }
      }

      // Down keeps the data, also when nobody supervises any more.
      kill(try cloud.pid("supervisor"), SIGKILL)
      try await cloud.down()
      let kept = try await cloud.remains()
      #expect(kept == ["directory"])
      try await cloud.up()
      #expect(try await cloud.host("host-01")["spec"]?["dpu"]?["node"] == "dpu-01")
    }
  }

  @Test("A network that is in use is refused, with one that is free", .timeLimit(.minutes(1)))
  func networkConflict() async throws {
    try await withCloud(name: "ycconf", subnet: "192.168.212.1/24") { cloud in
      let ip = try TestEnvironment.requireTool("ip")
      try await ChildProcess.run(ip, ["link", "add", "name", "ycconf0", "type", "bridge"])
      do {
        try await ChildProcess.run(ip, ["address", "add", "192.168.212.129/25", "dev", "ycconf0"])
        try await ChildProcess.run(ip, ["link", "set", "dev", "ycconf0", "up"])
        let error = await #expect(throws: TestEnvironmentError.self) {
          try await cloud.run("up", "--name", "ycconf", "--subnet", "192.168.212.1/24", "--hosts", "0")
        }
        #expect(error?.description.contains("--subnet") == true)
        let other = await #expect(throws: TestEnvironmentError.self) {
          try await cloud.run("up", "--name", "ycconf0", "--subnet", "192.168.213.1/24", "--hosts", "0")
        }
        #expect(other?.description.contains("--name") == true)
      } catch {
        _ = try? await ChildProcess.run(ip, ["link", "delete", "dev", "ycconf0"])
        throw error
      }
      try await ChildProcess.run(ip, ["link", "delete", "dev", "ycconf0"])
    }
  }

  @Test("Down of a cloud that never was is no error", .timeLimit(.minutes(1)))
  func downOfNothing() async throws {
    try await withCloud(name: "ycnone", subnet: "192.168.214.1/24") { cloud in
      try await cloud.down("--purge")
    }
  }
}

/// A cloud under test, run by the program as a user would.
private struct TestCloud: Sendable {
  var ycloud: String
  var directory: CloudDirectory
  var name: String
  var subnet: String

  var local: LocalCloud { LocalCloud(directory: directory) { _ in } }

  @discardableResult
  func run(_ arguments: String...) async throws -> String {
    try await run(arguments)
  }

  private func run(_ arguments: [String]) async throws -> String {
    try await ChildProcess.run(ycloud, arguments + ["--dir", directory.path], within: .seconds(120))
  }

  func up() async throws {
    try await run(
      "up", "--name", name, "--subnet", subnet, "--hosts", "1", "--host-memory", "64", "--pool-size", "2",
      "--timeout", "60")
  }

  @discardableResult
  func down(_ arguments: String...) async throws -> String {
    try await run(["down"] + arguments)
  }

  func pid(_ process: String) throws -> Int32 {
    try #require(ProcessTable.running(pidFile: directory.pidFile(process)), "\(process) does not run").pid
  }

  func pids() throws -> [String: Int32] {
    let parts = try #require(try local.state()).parts
    return Dictionary(uniqueKeysWithValues: parts.compactMap { part in part.pid.map { (part.name, $0) } })
  }

  private func withClient<Result: Sendable>(
    _ kubeconfig: String, _ body: (KubernetesClient) async throws -> Result
  ) async throws -> Result {
    let client = try KubernetesClient(
      configuration: try ClientConfiguration.load(kubeconfigPath: kubeconfig), logger: Logger(label: "test"))
    do {
      let result = try await body(client)
      try await client.shutdown()
      return result
    } catch {
      try? await client.shutdown()
      throw error
    }
  }

  func host(_ name: String) async throws -> JSONValue {
    try await withClient(directory.kubeconfig) {
      try await $0.request(method: "GET", path: "/apis/iaas.yusur.io/v1/baremetalhosts/\(name)")
    }
  }

  /// The handler of a DPU can ask for its own server and that one's boot data, and for nobody else's.
  func checkRights() async throws {
    try await withClient(directory.roleKubeconfig("bm-handler-host-01")) { client in
      let secrets = "/api/v1/namespaces/ycloud-system/secrets"
      // Allowed, and not there yet.
      await expectError(.notFound) { _ = try await client.request(method: "GET", path: "\(secrets)/host-host-01") }
      await expectError(.forbidden) { _ = try await client.request(method: "GET", path: "\(secrets)/host-host-02") }
      await expectError(.forbidden) { _ = try await client.request(method: "GET", path: "\(secrets)/bmc-host-01") }
      await expectError(.forbidden) { _ = try await client.request(method: "GET", path: "/api/v1/secrets") }
      let hosts = "/apis/iaas.yusur.io/v1/baremetalhosts"
      _ = try await client.request(method: "GET", path: "\(hosts)/host-01")
      _ = try await client.request(method: "GET", path: hosts, query: [("fieldSelector", "metadata.name=host-01")])
      await expectError(.forbidden) { _ = try await client.request(method: "GET", path: hosts) }
      await expectError(.forbidden) { _ = try await client.request(method: "GET", path: "\(hosts)/host-02") }
      await expectError(.forbidden) {
        _ = try await client.request(
          method: "PATCH", path: "\(hosts)/host-02/status", body: ["status": ["claim": .null]],
          contentType: "application/merge-patch+json")
      }
    }
    try await withClient(directory.roleKubeconfig("bm-controller")) { client in
      let leases = "/apis/coordination.k8s.io/v1/namespaces/ycloud-system/leases"
      _ = try await client.request(method: "GET", path: leases)
    }
    try await withClient(directory.roleKubeconfig("csi-controller")) { client in
      await expectError(.forbidden) { _ = try await client.request(method: "GET", path: "/api/v1/secrets") }
      _ = try await client.request(method: "GET", path: "/api/v1/persistentvolumeclaims")
    }
  }

  private func expectError(_ code: KubernetesError.Code, _ body: () async throws -> Void) async {
    let error = await #expect(throws: KubernetesError.self) { try await body() }
    #expect(error?.code == code)
  }

  /// Nobody but root can read a key.
  func checkModes() throws {
    for path in [
      directory.kubeconfig, directory.privateKey("ca"), directory.privateKey("admin"),
      directory.roleKubeconfig("bm-controller"), directory.host("host-01").bmcCredentials,
    ] {
      var status = stat()
      try #require(stat(path, &status) == 0, "\(path) is missing")
      #expect(status.st_mode & 0o077 == 0, "\(path) can be read by others")
    }
  }

  /// What is left of the cloud on this machine.
  func remains() async throws -> [String] {
    var found: [String] = []
    for entry in try await ChildProcess.run("/bin/ls", ["/proc"]).split(separator: "\n") {
      guard let pid = Int32(entry), pid != getpid(), let line = contentsOfFile("/proc/\(pid)/cmdline"),
        line.contains("\(directory.path)/"), ProcessTable.identity(pid) != nil
      else { continue }
      found.append("process \(pid): \(line.replacing("\0", with: " "))")
    }
    if contentsOfFile("/proc/self/mountinfo")?.contains(" \(directory.path)/") == true { found.append("mount") }
    let losetup = try TestEnvironment.requireTool("losetup")
    if try await ChildProcess.run(losetup, ["--all"]).contains(directory.path) { found.append("loop device") }
    if access("/sys/class/net/\(name)", F_OK) == 0 { found.append("bridge") }
    if access(directory.path, F_OK) == 0 { found.append("directory") }
    return found
  }
}
