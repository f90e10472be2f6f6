import Glibc
import JSON
import LocalCloud
import TestSupport
import Testing

@Suite("Processes of a local cloud")
struct ProcessTests {
  @Test("A pid file survives writing and reading; its first line is the number alone")
  func pidFile() throws {
    let identity = ProcessIdentity(pid: 4711, startTicks: 987_654_321, bootID: "a-b-c")
    #expect(identity.pidFileText.hasPrefix("4711\n"))
    #expect(ProcessIdentity(pidFileText: identity.pidFileText) == identity)
  }

  @Test(
    "Damaged pid files name no process",
    arguments: ["", "12", "0\n1 x\n", "-5\n1 x\n", "abc\n1 x\n", "12\n1\n", "1\n1 x"])
  func damagedPidFile(text: String) {
    #expect(ProcessIdentity(pidFileText: text) == nil)
  }

  @Test("A command's name with spaces and parentheses does not confuse the status")
  func statLine() throws {
    let line = "77 (a) S (b) Z 1 77 77 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 123456 1000 200"
    let status = try #require(ProcessStatus(statLine: line))
    #expect(status.state == "Z")
    #expect(!status.isAlive)
    #expect(status.startTicks == 123_456)
  }

  @Test("A later process with the same number is not the one in the pid file")
  func reusedNumber() throws {
    let own = try #require(ProcessTable.identity(getpid()))
    #expect(ProcessTable.isAlive(own))
    var other = own
    other.startTicks += 1
    #expect(!ProcessTable.isAlive(other))
    other = own
    other.bootID = "another boot"
    #expect(!ProcessTable.isAlive(other))
  }

  @Test("A process that has ended is not running, even before its parent looks")
  func endedProcess() async throws {
    let child = try ChildProcess("/bin/sleep", ["100"])
    let identity = try #require(ProcessTable.identity(child.pid))
    kill(child.pid, SIGKILL)
    try await eventually { !ProcessTable.isAlive(identity) }
  }

  @Test("Parts stand behind what they depend on, otherwise in the order given")
  func order() throws {
    let order = try StartOrder.sort([
      ("handler", ["objects", "data plane"]), ("etcd", []), ("apiserver", ["etcd"]), ("objects", ["apiserver"]),
      ("data plane", []),
    ])
    #expect(order == ["etcd", "apiserver", "objects", "data plane", "handler"])
  }

  @Test("Circles and unknown names are refused")
  func badOrder() {
    #expect(throws: LocalCloudError.self) { try StartOrder.sort([("a", ["b"]), ("b", ["a"])]) }
    #expect(throws: LocalCloudError.self) { try StartOrder.sort([("a", ["b"])]) }
  }

  @Test("A part that keeps ending is started ever more rarely, until it runs for a while")
  func backoff() {
    var backoff = RestartBackoff()
    let delays = (0..<12).map { _ in backoff.delay(afterRunning: .milliseconds(1)) }
    #expect(delays.first == RestartBackoff.first)
    #expect(delays.last == RestartBackoff.longest)
    #expect(zip(delays, delays.dropFirst()).allSatisfy { $0 <= $1 })
    #expect(backoff.delay(afterRunning: RestartBackoff.calm) == RestartBackoff.first)
  }
}

@Suite("Manifests")
struct ManifestTests {
  @Test("Documents become JSON with YAML's types, variables are filled in")
  func parse() throws {
    let documents = try Manifests.parse(
      """
      # nothing
      ---
      name: x-${HOST}
      count: 3
      share: 0.5
      isTrue: true
      text: "3"
      nothing: ~
      list: [a, 1]
      ---
      """, variables: ["HOST": "host-01"])
    #expect(
      documents == [
        [
          "name": "x-host-01", "count": 3, "share": 0.5, "isTrue": true, "text": "3", "nothing": nil, "list": ["a", 1],
        ]
      ])
  }
}
