import BareMetal
import IaaS
import Kubernetes
import Testing

/// What power on waits for, and when the wish for it is taken back.
extension PlannerTests {
  @Test("Power waits until the DPU shows the interfaces of this very boot data, each at its place")
  func interfacesOfAnOlderSpec() {
    let later = machine { $0.spec.interfaces.insert(.init(name: "eth1"), at: 0) }
    var view = prepared(later, power: .off)
    view.bootData = [:]
    #expect(plan(view).steps.allSatisfy { !$0.isPower(of: "h") }, "somebody has removed the boot data")
    let kept = [
      GuestInterface(name: "eth0", mac: MACAddress.derived(uid: "u", index: 0)),
      GuestInterface(name: "eth1", mac: MACAddress.derived(uid: "u", index: 1)),
    ]
    let written = plan(view).steps.compactMap { if case .writeBootData(_, let data) = $0 { data } else { nil } }
    #expect(written.map(\.interfaces) == [kept], "what is plugged stays at its place")
    view.bootData = ["h": written[0].secret(host: "h")]
    #expect(plan(view).steps == [], "the DPU does not show the second one yet")
    view.hosts[0].status?.dpu?.interfaces = kept.map { .init(name: $0.name, mac: $0.mac) }
    view.hosts[0].status?.dpu?.slots?.append(
      .init(name: Names.networkFunction(index: 1, interface: "eth1"), kind: .nic))
    #expect(plan(view).steps == [.power(host: "h", .on)])
  }

  @Test("An interface that is added while the server goes on is plugged, and the boot goes on")
  func interfaceAddedDuringPowerOn() {
    var view = prepared(machine(), power: .on)
    view.machine.spec.interfaces.append(.init(name: "eth1"))
    let result = plan(view)
    #expect(result.status.bootedAt == now)
    #expect(result.steps.allSatisfy { !$0.isPower(of: "h") })
  }

  @Test("A server that went on with its boot is not switched off for disks that came and went in the spec since")
  func disksChangedDuringPowerOn() {
    var added = prepared(machine(), power: .on)
    added.machine.spec.disks.append(.init(name: "data", existingClaim: .init(claimName: "data")))
    var swapped = added
    swapped.machine.spec.disks.removeFirst()
    // The server is on with a disk that the spec boots from no more: that is not the machine that was asked for.
    let (kept, changed) = (plan(added), plan(swapped))
    #expect(kept.status.bootedAt == now, "\(kept.status.conditions ?? [])")
    #expect(kept.steps.allSatisfy { !$0.isPower(of: "h") })
    #expect(changed.status.bootedAt == nil)
    #expect(changed.steps.contains { $0.isPower(of: "h") })
    var other = added
    other.hosts[0].status?.dpu?.boot = "u/2"
    #expect(plan(other).status.bootedAt == nil, "on, but not with this boot")
    #expect(plan(other).steps.contains { $0.isPower(of: "h") })
  }

  @Test("A wish to go on is taken back when the spec turns invalid or something is missing again")
  func withdrawnOn() {
    let invalid = machine { $0.spec.disks.append($0.spec.disks[0]) }
    var view = prepared(invalid, power: .off)
    #expect(plan(view).steps == [])
    view.power["h"]?.wantsOn = true
    #expect(plan(view).steps == [.power(host: "h", .observe)])
    #expect(plan(view).status.conditions?.condition("Powered")?.reason == "Invalid")
    var missing = prepared(machine(), power: .off)
    missing.power["h"]?.wantsOn = true
    #expect(plan(missing).steps == [.power(host: "h", .on)], "it is wanted as before")
    missing.attachments[0].status?.attached = false
    #expect(plan(missing).steps == [.power(host: "h", .observe)])
  }
}
