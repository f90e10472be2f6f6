import Glibc
import JSON
import TestSupport
import Testing

/// Ports of a real guest at this computer, through kube-apiserver and bm-api.
@Suite("Ports of machines", .serialized, .cloud("ycapf", hosts: 1, subnet: "192.168.107.1/24"))
struct PortForwardTests {
  /// Busybox' web server, with a file and its checksum.
  private static let userData = """
    #!/bin/sh
    mkdir -p /tmp/www
    dd if=/dev/urandom of=/tmp/www/blob bs=1M count=8 2>/dev/null
    sha256sum /tmp/www/blob | cut -d' ' -f1 >/tmp/www/sum
    busybox httpd -p 80 -h /tmp/www
    """

  @Test("A web server in a guest answers at a port of this computer; a port where nothing listens says so")
  func webServer() async throws {
    let cloud = try CloudUnderTest.running
    var manifest = MachineManifest(name: "web")
    manifest.userData = Self.userData
    try await cloud.apply(manifest.json)
    let child = try ChildProcess(
      cloud.bmctl, ["port-forward", "web", ":80", ":81"], environment: ["KUBECONFIG": cloud.kubeconfig])
    defer { child.kill() }
    func port(_ remote: Int) async throws -> Int {
      let prefix = "127.0.0.1:"
      return try await eventualValue(within: .seconds(20), "it listens: \(child.output)") {
        child.output.split(separator: "\n").first { $0.hasPrefix(prefix) && $0.contains("is port \(remote) of web") }
          .flatMap { Int($0.dropFirst(prefix.count).prefix { $0 != " " }) }
      }
    }
    let web = "http://127.0.0.1:\(try await port(80))"
    // Before the machine is on, a connection fails, says why, and the next one is tried anew.
    await #expect(throws: CommandFailure.self) { try await command("curl", ["-sf", "-m", "10", "\(web)/sum"]) }
    try await eventually(within: .seconds(10), "the reason is told") { child.output.contains("error: web:80: machine") }

    try await cloud.bmctl("wait", "web", "--for", "Running", "--timeout", "180")
    let sum = try await eventualValue(within: .seconds(60), every: .milliseconds(500), "the guest serves") {
      let text = try await command("curl", ["-sf", "-m", "10", "\(web)/sum"])
      return text.utf8.count == 65 ? text : nil
    }
    for _ in 0..<3 {
      let file = "\(cloud.directory)/blob"
      try await command("curl", ["-sf", "-m", "60", "-o", file, "\(web)/blob"])
      #expect(try await command("sha256sum", [file]).prefix(64) == sum.prefix(64))
    }
    let none = "http://127.0.0.1:\(try await port(81))"
    await #expect(throws: CommandFailure.self) { try await command("curl", ["-sf", "-m", "10", none]) }
    try await eventually(within: .seconds(10), "the refusal is told") {
      child.output.contains("error: web:81: machine web refuses connections at port 81")
    }
  }
}
