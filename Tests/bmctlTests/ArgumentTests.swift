import Kubernetes
import TestSupport
import Testing
import bmctl

@Suite("Arguments")
struct ArgumentTests {
  @Test("Only an address goes to ssh's command line")
  func sshAddress() {
    for address in ["192.168.77.10", "::1", "fe80::1"] { #expect(SSHArguments.isAddress(address)) }
    for address in ["-oProxyCommand=x", "host", "", "1.2.3", "1.2.3.4 -x", "1.2.3.4\n", "1.2.3.4\0-x"] {
      #expect(!SSHArguments.isAddress(address))
    }
    for user in ["-l", "a b", "", "a@b", "ä"] { #expect(!SSHArguments.isUser(user)) }
    #expect(SSHArguments.isUser("debian"))
  }

  @Test("The user's options come before ours, the command after the address")
  func sshCommand() {
    let arguments = SSHArguments.arguments(
      address: "10.0.0.1", uid: "u", user: "debian", identity: "k", port: 2222,
      options: ["StrictHostKeyChecking=no"], command: ["ls", "-l"])
    #expect(
      arguments == [
        "-o", "HostKeyAlias=bmm-u", "-o", "StrictHostKeyChecking=no", "-o", "StrictHostKeyChecking=accept-new", "-o",
        "CheckHostIP=no", "-i", "k", "-o", "IdentitiesOnly=yes", "-p", "2222", "-l", "debian", "--", "10.0.0.1", "ls",
        "-l",
      ])
  }

  @Test("scp gets what ssh gets, with the address of the machine in its paths")
  func scpCommand() throws {
    let copy = try SCPCopy.parse(["bm-01:/var/log/syslog", "bm-01:x y", "."]).get()
    let arguments = SSHArguments.scp(
      copy, address: "fd00::7", uid: "u", user: "debian", identity: "k", port: 2222,
      options: ["StrictHostKeyChecking=no"], isRecursive: true, preserves: true)
    #expect(
      arguments == [
        "-o", "HostKeyAlias=bmm-u", "-o", "StrictHostKeyChecking=no", "-o", "StrictHostKeyChecking=accept-new", "-o",
        "CheckHostIP=no", "-i", "k", "-o", "IdentitiesOnly=yes", "-P", "2222", "-r", "-p", "--",
        "debian@[fd00::7]:/var/log/syslog", "debian@[fd00::7]:x y", ".",
      ])
    let plain = SSHArguments.scp(
      try SCPCopy.parse(["a", "bm-01:"]).get(), address: "10.0.0.1", uid: "u", user: "root", identity: nil, port: 22,
      options: [], isRecursive: false, preserves: false)
    #expect(plain.suffix(3) == ["--", "./a", "root@10.0.0.1:"])
    // What both have before their own: whatever goes for ssh goes for scp.
    let ssh = SSHArguments.arguments(
      address: "10.0.0.1", uid: "u", user: "root", identity: nil, port: 22, options: [], command: [])
    #expect(plain.prefix(6) == ssh.prefix(6))
  }

  @Test("What is a file here is none elsewhere, whatever it is called")
  func scpNames() throws {
    func here(_ name: String) throws -> SCPCopy.End? { try SCPCopy.parse([name, "bm-01:"]).get().sources.first }
    #expect(try here("-oProxyCommand=x") == .here("./-oProxyCommand=x"))
    #expect(try here("./a:b") == .here("./a:b"))
    #expect(try here("sub/a:b") == .here("./sub/a:b"))
    #expect(try here("/a:b") == .here("/a:b"))
    #expect(try here("..") == .here(".."))
    #expect(try SCPCopy.parse(["bm-01:-x:y", "z"]).get().sources == [.machine("-x:y")])
    for refused in [
      ["a"], [], ["a", "b"], ["bm-01:a", "bm-02:b"], ["bm-01:a", "bm-01:b"], ["a", "bm-01:b", "c"], ["", "bm-01:"],
      ["-oProxyCommand=x:y", "."], ["a", "-bm:"], ["a", "BM:"], ["a", ":b"], ["a", "root@bm-01:b"], ["a", "[::1]:b"],
      ["a", "bm\n:b"], ["bm-01:a", "x", "bm-01:y"],
    ] {
      guard case .failure(let problem) = SCPCopy.parse(refused) else {
        Issue.record("\(refused) is copied")
        continue
      }
      #expect(!problem.message.isEmpty)
    }
  }

  /// scp itself, with a program in ssh's place that notes what it is started with.
  @Test(
    "scp reads from its command line the host, the user and the path that are meant",
    arguments: ["10.0.0.1", "fd00::7"])
  func scpItself(address: String) async throws {
    let folder = try TemporaryDirectory()
    let program = try folder.write("ssh", "#!/bin/sh\nprintf '%s\\n' \"$@\" > '\(folder.file("seen"))'\nexit 1\n")
    try await ChildProcess.run("chmod", ["+x", program])
    let file = try folder.write("-q", "x")
    let copy = try SCPCopy.parse(["-q", "bm-01:/tmp/a:b"]).get()
    let arguments = SSHArguments.scp(
      copy, address: address, uid: "u", user: "debian", identity: nil, port: 2222, options: [], isRecursive: false,
      preserves: false)
    let quoted = (["-S", program] + arguments).map { "'\($0)'" }.joined(separator: " ")
    let child = try ChildProcess("/bin/sh", ["-c", "cd '\(folder.path)' && test -f '\(file)' && exec scp \(quoted)"])
    _ = try await child.waitForExit()
    let seen = (contentsOfFile(folder.file("seen")) ?? child.output).split(separator: "\n").map(String.init)
    #expect(seen.contains("HostKeyAlias=bmm-u") && seen.contains("StrictHostKeyChecking=accept-new"), "\(seen)")
    let user = try #require(seen.firstIndex(of: "-l"))
    #expect(seen[user + 1] == "debian")
    let port = try #require(seen.firstIndex(of: "-p"))
    #expect(seen[port + 1] == "2222")
    #expect(seen.contains(address), "\(seen)")
    #expect(!seen.contains("-q"), "the file is no option")
  }

  @Test("A BMC's address has a known scheme and no user name")
  func bmc() {
    for address in ["redfish+https://10.0.0.7", "ipmi://bmc:623", "redfish+http://[::1]:80/redfish/v1/Systems/1"] {
      #expect(HostArguments.isBMC(address))
    }
    for address in ["https://x", "redfish+https://", "ipmi://a@b", "ipmi://a b", ""] {
      #expect(!HostArguments.isBMC(address))
    }
    #expect(HostArguments.isName("host-01"))
    #expect(!HostArguments.isName("host.01"))
    #expect(!HostArguments.isName(String(repeating: "a", count: 51)))
    #expect(HostArguments.label("a=b=c")?.1 == "b=c")
    #expect(HostArguments.label("=b") == nil)
  }

  @Test("Errors of the API server have exit codes and remedies")
  func errors() {
    let codes: [(KubernetesError.Code, ExitReason)] = [
      (.notFound, .notFound), (.forbidden, .refused), (.unauthorized, .refused), (.conflict, .conflict),
      (.alreadyExists, .conflict), (.timeout, .timedOut), (.unavailable, .unreachable), (.configuration, .unreachable),
      (.invalid, .invalidInput), (.other, .failure),
    ]
    for (code, status) in codes {
      #expect(CommandError(KubernetesError(code: code, operation: "get x", message: "m")).code == status)
    }
    #expect(Set(ExitReason.allCases.map(\.rawValue)).count == ExitReason.allCases.count)
  }
}
