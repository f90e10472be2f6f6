import IaaS
import JSON
import Kubernetes
import MachineAPI
import TestSupport
import Testing

/// Which addresses are connected to. Pure.
@Suite struct ForwardTargetTests {
  private static let networks = ["10.1.0.0/16", "fd00:1::/64"].compactMap { AddressPrefix($0) }

  private func rule(own: [String] = [], servers: [String] = []) -> AddressRule {
    let own = Set(own.compactMap { MachineAddress($0) })
    return AddressRule(
      networks: Self.networks, servers: Set(servers.compactMap { MachineAddress($0) }), own: { own })
  }

  @Test(arguments: [
    "127.0.0.1", "127.9.9.9", "0.0.0.0", "0.1.2.3", "169.254.169.254", "224.0.0.1", "255.255.255.255", "240.0.0.1",
    "::",
    "::1", "::7f00:1", "::ffff:127.0.0.1", "::ffff:169.254.169.254", "fe80::1", "febf::1", "ff02::1",
  ]) func nothingOfAMachineIsThere(text: String) throws {
    let address = try #require(MachineAddress(text))
    #expect(address.objection != nil)
    // Also where an operator names everything.
    let everything = ["0.0.0.0/1", "128.0.0.0/1", "::/1", "8000::/1"].compactMap { AddressPrefix($0) }
    #expect(AddressRule(networks: everything, own: { [] }).objection(to: address) != nil)
  }

  @Test func onlyTheNetworksOfMachinesAreConnectedTo() throws {
    func objection(_ text: String, _ rule: AddressRule) throws -> String? {
      rule.objection(to: try #require(MachineAddress(text)))
    }
    #expect(try objection("10.1.255.254", rule()) == nil)
    #expect(try objection("::ffff:10.1.2.3", rule()) == nil)
    #expect(try objection("fd00:1::7", rule()) == nil)
    for other in ["10.2.0.1", "10.0.255.255", "8.8.8.8", "fd00:1:0:1::7", "fd00::1"] {
      #expect(try objection(other, rule()) != nil, "\(other)")
    }
    #expect(try objection("10.1.0.1", rule(own: ["10.1.0.1"])) != nil)
    #expect(try objection("::ffff:10.1.0.1", rule(servers: ["10.1.0.1"])) != nil)
    #expect(try objection("10.1.0.2", AddressRule(own: { [] })) != nil)
    // This computer's own addresses are known.
    #expect(try #require(AddressRule.ownAddresses()).contains(try #require(MachineAddress("127.0.0.1"))))
    #expect(try objection("10.1.0.1", AddressRule(networks: Self.networks, own: { nil })) != nil)
    #expect(
      AddressRule.addresses(inURL: "https://10.0.0.7:6443/x") == Set([MachineAddress("10.0.0.7")].compactMap { $0 }))
    #expect(
      AddressRule.addresses(inURL: "https://[fd00::7]:6443") == Set([MachineAddress("fd00::7")].compactMap { $0 }))
    #expect(AddressRule.addresses(inURL: "https://kubernetes.default").isEmpty)
  }

  @Test func aPrefixEndsAtItsBit() throws {
    let prefix = try #require(AddressPrefix("192.168.77.1/20"))
    #expect(prefix.contains(try #require(MachineAddress("192.168.64.0"))))
    #expect(prefix.contains(try #require(MachineAddress("192.168.79.255"))))
    #expect(!prefix.contains(try #require(MachineAddress("192.168.80.0"))))
    for text in [
      "", "10.0.0.0", "10.0.0.0/", "10.0.0.0/33", "10.0.0.0/0", "10.0.0.0/-1", "10.0.0.0/8/8", "x/8", "::/129",
    ] {
      #expect(AddressPrefix(text) == nil, "\(text)")
    }
    for text in ["", "10.0.0", "10.0.0.1\0", "10.0.0.1 ", "localhost", "010.0.0.1x", "fe80::1%eth0"] {
      #expect(MachineAddress(text) == nil, "\(text)")
    }
  }

  private func machine() -> BareMetalMachine {
    var metadata = ObjectMeta(name: "bm-01", namespace: "team")
    metadata.uid = "u"
    var machine = BareMetalMachine(metadata: metadata, spec: .init(disks: []))
    machine.status = .init()
    machine.status?.host = "host-01"
    machine.status?.bootedAt = .now()
    machine.status?.addresses = [
      .init(interface: "eth0", mac: "02:00:00:00:00:01", address: "10.1.0.7"),
      .init(interface: "eth1", mac: "02:00:00:00:00:02", address: "10.1.0.8"),
    ]
    return machine
  }

  private enum Proof { case none, lease, answer }

  private func host(
    _ seen: [(String, String?)], claimedBy uid: String = "u", _ proof: Proof = .lease
  ) throws -> BareMetalHost {
    var host = BareMetalHost(
      metadata: ObjectMeta(name: "host-01"),
      spec: .init(bmc: .init(address: "ipmi://b", credentialsSecretRef: .init(name: "b")), dpu: .init(node: "d")))
    host.status = .init()
    host.status?.claim = .init(namespace: "team", name: "bm-01", uid: uid)
    host.status?.dpu = .init()
    host.status?.dpu?.interfaces = seen.map {
      .init(
        name: "eth0", mac: $0.0, address: $0.1, leasedAt: proof == .lease ? .now() : nil,
        reachableAt: proof == .answer ? .now() : nil)
    }
    return host
  }

  private func failure(_ machine: BareMetalMachine, _ host: BareMetalHost, _ rule: AddressRule) -> APIFailure? {
    do {
      _ = try ForwardTarget.decide(machine, on: host, rule: rule)
      return nil
    } catch {
      return error
    }
  }

  @Test func machineAndDPUHaveToAgree() throws {
    let good = try host([("02:00:00:00:00:02", "10.1.0.8")])
    #expect(try ForwardTarget.decide(machine(), on: good, rule: rule()).description == "10.1.0.8")
    // A guest may have its address without a lease, but what the spec asks for alone is nobody's yet.
    let answering = try host([("02:00:00:00:00:02", "10.1.0.8")], .answer)
    #expect(try ForwardTarget.decide(machine(), on: answering, rule: rule()).description == "10.1.0.8")
    #expect(failure(machine(), try host([("02:00:00:00:00:02", "10.1.0.8")], .none), rule())?.code == 409)
    // The DPU saw nothing, somebody else's address, or one of another boot; another machine's host; one that is off.
    for seen in [
      [], [("02:00:00:00:00:02", nil)], [("02:00:00:00:00:02", "10.1.0.9")], [("02:00:00:00:00:03", "10.1.0.8")],
    ] {
      #expect(failure(machine(), try host(seen), rule())?.code == 409)
    }
    #expect(failure(machine(), try host([("02:00:00:00:00:02", "10.1.0.8")], claimedBy: "v"), rule())?.code == 409)
    var off = machine()
    off.status?.bootedAt = nil
    #expect(failure(off, good, rule())?.code == 409)
    #expect(failure(machine(), good, rule(own: ["10.1.0.8"]))?.code == 409)
    #expect(failure(machine(), good, AddressRule(own: { [] }))?.code == 501)
    // Where two ask for one address, nobody knows who answers there.
    var doubtful = machine()
    doubtful.status?.conditions = [
      Condition(
        type: BareMetalMachine.ConditionType.addressesUnique, status: .false, reason: "Duplicate", message: "team/bm-02"
      )
    ]
    #expect(failure(doubtful, good, rule())?.code == 409)
  }

  @Test func aPortIsANumber() throws {
    #expect(try ForwardTarget.port("22") == 22)
    for text in [nil, "", "0", "65536", "-1", "+1", "22 ", "22x", "999999", "٢٢"] {
      #expect(throws: APIFailure.self) { try ForwardTarget.port(text) }
    }
  }
}
