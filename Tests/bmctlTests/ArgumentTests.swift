import Kubernetes
import Testing
import bmctl

@Suite("Arguments")
struct ArgumentTests {
  @Test("Only an address goes to ssh's command line")
  func sshAddress() {
    for address in ["192.168.77.10", "::1", "fe80::1"] { #expect(SSHArguments.isAddress(address)) }
    for address in ["-oProxyCommand=x", "host", "", "1.2.3", "1.2.3.4 -x", "1.2.3.4\n"] {
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
