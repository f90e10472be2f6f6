import BMC
import BareMetal
import DPU
import Foundation
import IaaS
import JSON
import Kubernetes
import Testing

@Suite("Power decisions")
struct PowerTests {
  @Test("Off counts after three readings, three seconds apart, and any other reading starts over")
  func confirmation() {
    var tracker = PowerTracker()
    _ = tracker.want(.off(grace: .zero))
    let move1 = tracker.observe(.on, at: .zero)
    #expect(move1 == .command(.forceOff, thenReadAfter: .milliseconds(100)))
    let move2 = tracker.observe(.off, at: .seconds(1))
    #expect(move2 == .read(after: .seconds(3)))
    let move3 = tracker.observe(.off, at: .seconds(4))
    #expect(move3 == .read(after: .seconds(3)))
    #expect(!tracker.isConfirmedOff(at: .seconds(4), freshness: .seconds(60)))
    // The BMC lied: it was on all the time.
    let move4 = tracker.observe(.on, at: .seconds(6))
    #expect(move4 == .read(after: .milliseconds(800)))
    _ = tracker.observe(.off, at: .seconds(7))
    _ = tracker.observe(.off, at: .seconds(10))
    let move5 = tracker.observe(.off, at: .seconds(13))
    #expect(move5 == .settled)
    #expect(tracker.isConfirmedOff(at: .seconds(13), freshness: .seconds(60)))
    #expect(!tracker.isConfirmedOff(at: .seconds(100), freshness: .seconds(60)), "proofs grow old")
  }

  @Test("A system is asked first, and its power cut when its time is over")
  func grace() {
    var tracker = PowerTracker()
    _ = tracker.want(.off(grace: .seconds(10)))
    let move6 = tracker.observe(.on, at: .zero)
    #expect(move6 == .command(.gracefulShutdown, thenReadAfter: .milliseconds(100)))
    let move7 = tracker.observe(.on, at: .seconds(5))
    #expect(move7 == .read(after: .milliseconds(500)))
    let move8 = tracker.observe(.on, at: .seconds(11))
    #expect(move8 == .command(.forceOff, thenReadAfter: .milliseconds(100)))
  }

  @Test("A BMC that cannot ask the system is told to cut the power at once")
  func noGrace() {
    var tracker = PowerTracker()
    _ = tracker.want(.off(grace: .seconds(10)))
    _ = tracker.observe(.on, at: .zero)
    tracker.failed(.gracefulShutdown, at: .zero)
    let move9 = tracker.observe(.on, at: .seconds(1))
    #expect(move9 == .command(.forceOff, thenReadAfter: .milliseconds(100)))
  }

  @Test("A BMC that is busy is asked once more, and the system keeps its time")
  func busyGrace() {
    var tracker = PowerTracker()
    _ = tracker.want(.off(grace: .seconds(30)))
    _ = tracker.observe(.on, at: .zero)
    tracker.failed(.gracefulShutdown, at: .zero, isTransient: true)
    var asked = 0
    for second in 1..<30 {
      let move = tracker.observe(.on, at: .seconds(second))
      if case .command(let action, _) = move {
        #expect(action == .gracefulShutdown, "after \(second) s")
        asked += 1
      }
    }
    #expect(asked == 1)
    let last = tracker.observe(.on, at: .seconds(31))
    #expect(last == .command(.forceOff, thenReadAfter: .milliseconds(100)))
  }

  @Test("A server that was told to go on is told off again, although it still reads off")
  func onMayBePending() {
    var tracker = PowerTracker()
    _ = tracker.want(.on)
    let move10 = tracker.observe(.off, at: .seconds(1))
    #expect(move10 == .command(.on, thenReadAfter: .milliseconds(100)))
    _ = tracker.want(.off(grace: .zero))
    let move11 = tracker.observe(.off, at: .seconds(2))
    #expect(move11 == .command(.forceOff, thenReadAfter: .milliseconds(100)))
  }

  @Test("A command that fails is repeated more and more seldom, while readings go on")
  func refusedCommand() {
    var tracker = PowerTracker()
    _ = tracker.want(.on)
    var commands: [Int] = []
    for second in 1...600 {
      let time = Duration.seconds(second)
      guard case .command(let action, _) = tracker.observe(.off, at: time) else { continue }
      commands.append(second)
      tracker.failed(action, at: time)
    }
    #expect(commands.prefix(5) == [1, 2, 4, 8, 16])
    #expect(commands.count < 18)
    tracker.accepted()
    _ = tracker.want(.off(grace: .zero))
    let move = tracker.observe(.on, at: .seconds(601))
    #expect(move == .command(.forceOff, thenReadAfter: .milliseconds(100)), "another wish is tried at once")
  }

  @Test("Failures to give the command to go off are no fence, however many", arguments: [PowerState.off, .unknown])
  func noFenceWithoutCommand(_ before: PowerState) {
    var tracker = PowerTracker()
    _ = tracker.want(.off(grace: .zero))
    var failures = 0
    for second in 1...900 {
      let time = Duration.seconds(second)
      let reading = failures == 0 ? before : .off
      if case .command(let action, _) = tracker.observe(reading, at: time) {
        failures += 1
        tracker.failed(action, at: time)
      }
      #expect(!tracker.isFencedOff(at: time, freshness: .seconds(60)))
    }
    #expect(failures > 3)
    #expect(tracker.isConfirmedOff(at: .seconds(900), freshness: .seconds(60)), "that it reads off is not doubted")
  }

  @Test("A BMC that will not turn off what is off is believed after three refusals, and readings after them")
  func refusesBecauseOff() {
    var tracker = PowerTracker()
    _ = tracker.want(.off(grace: .zero))
    var refusals: [Int] = []
    var fenced: Int?
    for second in 1...60 {
      let time = Duration.seconds(second)
      if case .command(let action, _) = tracker.observe(.off, at: time) {
        refusals.append(second)
        tracker.failed(action, at: time, isStateRefusal: true)
      }
      if fenced == nil, tracker.isFencedOff(at: time, freshness: .seconds(60)) { fenced = second }
    }
    #expect(refusals.count == 3)
    #expect(fenced.map { $0 >= (refusals.last ?? 0) + 6 } == true, "three readings, three seconds apart")
  }

  @Test("Commands are not repeated within ten seconds")
  func gentle() {
    var tracker = PowerTracker()
    _ = tracker.want(.on)
    var commands = 0
    for tenth in 1...95 {
      if case .command = tracker.observe(.off, at: .milliseconds(100 * tenth)) { commands += 1 }
    }
    #expect(commands == 1)
  }
}

@Suite("What bm-handler does")
struct HandlerTests {
  func host(claim uid: String? = "u") -> BareMetalHost {
    var host = BareMetalHost(
      metadata: ObjectMeta(name: "h"),
      spec: .init(bmc: .init(address: "ipmi://b", credentialsSecretRef: .init(name: "s")), dpu: .init(node: "d")))
    var status = BareMetalHost.Status()
    status.claim = uid.map { .init(namespace: "n", name: "m", uid: $0) }
    host.status = status
    return host
  }

  func attachment(volume: String = "pvc-1", uid: String = "u", node: String = "d") -> VolumeAttachment {
    var metadata = ObjectMeta(name: "ycloud-\(volume)", uid: "a")
    metadata.labels = [Names.hostLabel: "h"]
    metadata.annotations = [Names.machineUIDAnnotation: uid, Names.bootOrderAnnotation: "1"]
    return VolumeAttachment(
      metadata: metadata,
      spec: .init(attacher: Names.storageDriver, nodeName: node, source: .init(persistentVolumeName: volume)))
  }

  let shown = (
    BlockVolume(name: "pvc-1", file: "/p/pvc-1.img", blockSize: 512, blockCount: 8, readOnly: false),
    BlockFunction(name: "blk-01-pvc-1", volume: "pvc-1", readOnly: false)
  )

  @Test("An attachment becomes a volume and a function, once")
  func attach() {
    var view = HandlerView(host: host(), volumesDirectory: "/p")
    view.attachments = [attachment()]
    #expect(
      HandlerPlan.steps(view) == [
        .createVolume(name: "pvc-1", file: "/p/pvc-1.img", readOnly: false),
        .plug(function: "blk-01-pvc-1", volume: "pvc-1", readOnly: false),
      ])
    view.volumes = [shown.0]
    #expect(HandlerPlan.steps(view) == [.plug(function: "blk-01-pvc-1", volume: "pvc-1", readOnly: false)])
    view.functions = [shown.1]
    #expect(HandlerPlan.steps(view) == [])
  }

  @Test("A volume that has grown is shown with its new size, after everything else, once")
  func grow() {
    var view = HandlerView(host: host(), volumesDirectory: "/p")
    var grown = attachment()
    grown.metadata.annotations?[Names.capacityAnnotation] = "8192"
    view.attachments = [grown, attachment(volume: "pvc-2")]
    view.volumes = [shown.0]
    view.functions = [shown.1]
    #expect(
      HandlerPlan.steps(view) == [
        .createVolume(name: "pvc-2", file: "/p/pvc-2.img", readOnly: false),
        .plug(function: "blk-01-pvc-2", volume: "pvc-2", readOnly: false), .growVolume("pvc-1", bytes: 8192),
      ])
    view.attachments = [grown]
    // Shown with another size it is; a volume that is not there yet is opened with the size that it has.
    view.volumes[0].blockCount = 16
    #expect(HandlerPlan.steps(view) == [])
    view.volumes = []
    view.functions = []
    #expect(HandlerPlan.steps(view).count == 2)
  }

  @Test("A size that is no number is not looked at", arguments: ["-1", "", "1e9", "99999999999999999999999"])
  func damagedSize(_ text: String) {
    var view = HandlerView(host: host(), volumesDirectory: "/p")
    var damaged = attachment()
    damaged.metadata.annotations?[Names.capacityAnnotation] = text
    view.attachments = [damaged]
    view.volumes = [shown.0]
    view.functions = [shown.1]
    #expect(HandlerPlan.steps(view) == [])
  }

  @Test("An attachment for a machine that does not hold the host has no effect")
  func fence() {
    for (claim, attachment) in [
      (nil, attachment()), ("other", attachment()), ("u", attachment(node: "elsewhere")),
      ("u", attachment(volume: "../../etc/shadow")), ("u", attachment(volume: ".hidden")),
    ] {
      var view = HandlerView(host: host(claim: claim), volumesDirectory: "/p")
      view.attachments = [attachment]
      #expect(HandlerPlan.steps(view) == [])
      #expect(HandlerPlan.objection(to: attachment, host: view.host) != nil)
    }
  }

  @Test("A deleted attachment takes function and volume away, in this order")
  func detach() {
    var view = HandlerView(host: host(), volumesDirectory: "/p")
    var attachment = attachment()
    attachment.metadata.deletionTimestamp = .now()
    view.attachments = [attachment]
    view.volumes = [shown.0]
    view.functions = [shown.1]
    #expect(HandlerPlan.steps(view) == [.unplug(function: "blk-01-pvc-1"), .deleteVolume("pvc-1")])
    #expect(!HandlerPlan.isGone(volume: "pvc-1", volumes: view.volumes, functions: []))
    #expect(HandlerPlan.isGone(volume: "pvc-1", volumes: [], functions: []))
  }

  @Test("What fails is tried more and more seldom, and a data plane that is away is looked for often")
  func pace() {
    var pace = RetryPace()
    let failing = (0..<7).map { _ in pace.next(.failed) }
    #expect(failing == [1, 2, 4, 8, 16, 30, 30].map { .seconds($0) })
    let unavailable = pace.next(.unavailable)
    #expect(unavailable == RetryPace.calm)
    let calm = pace.next(.calm)
    #expect(calm == .seconds(5))
    let again = pace.next(.failed)
    #expect(again == .seconds(1), "after success it begins anew")
  }

  @Test("What somebody else made in the data plane stays, and what the handler made goes")
  func foreignObjects() {
    var view = HandlerView(host: host(), volumesDirectory: "/p")
    view.seedDirectory = "/s"
    func volume(_ name: String, _ file: String) -> BlockVolume {
      BlockVolume(name: name, file: file, blockSize: 512, blockCount: 8, readOnly: false)
    }
    view.volumes = [
      volume("theirs", "/srv/theirs.img"), volume("beside", "/pool2/x.img"), volume("old", "/p/old.img"),
      volume("blk-99-seed", "/s/seed-1.img"), volume("pvc-1", "/before/pvc-1.img"),
    ]
    view.functions = [
      BlockFunction(name: "vhost.0", volume: "theirs", readOnly: false),
      BlockFunction(name: "blk-x1-theirs", volume: "theirs", readOnly: false),
      BlockFunction(name: "blk-01-old", volume: "old", readOnly: false),
      BlockFunction(name: "blk-99-seed", volume: "blk-99-seed", readOnly: true),
    ]
    var deleted = attachment()
    deleted.metadata.deletionTimestamp = .now()
    view.attachments = [deleted]
    #expect(
      HandlerPlan.steps(view) == [
        .unplug(function: "blk-01-old"), .unplug(function: "blk-99-seed"), .deleteVolume("old"),
        .deleteVolume("blk-99-seed"), .deleteVolume("pvc-1"),
      ])
  }

  @Test("What is shown stays while its attachment stands, whatever became of the claim or the host object")
  func stays() {
    for host in [host(claim: nil), nil] {
      var view = HandlerView(host: host, volumesDirectory: "/p")
      view.attachments = [attachment()]
      view.volumes = [shown.0]
      view.functions = [shown.1]
      #expect(HandlerPlan.steps(view) == [])
    }
  }

  @Test("A volume is the file of its handle, and no handle leads out of the pool")
  func handles() {
    var view = HandlerView(host: host(), volumesDirectory: "/p")
    var attachment = attachment(volume: "by-hand")
    attachment.metadata.annotations?[Names.volumeHandleAnnotation] = "pvc-7"
    attachment.metadata.name = "ycloud-pvc-7"
    view.attachments = [attachment]
    #expect(
      HandlerPlan.steps(view) == [
        .createVolume(name: "by-hand", file: "/p/pvc-7.img", readOnly: false),
        .plug(function: "blk-01-by-hand", volume: "by-hand", readOnly: false),
      ])
    for handle in ["../other/pvc-7", "/etc/shadow", "..", "a/b", "", "-rf"] {
      attachment.metadata.annotations?[Names.volumeHandleAnnotation] = handle
      view.attachments = [attachment]
      #expect(HandlerPlan.steps(view) == [], "\(handle)")
      #expect(HandlerPlan.objection(to: attachment, host: view.host)?.contains("handle") == true, "\(handle)")
    }
  }

  @Test("Boot data that is missing or damaged takes nothing from a machine that runs; withdrawn boot data does")
  func absentBootData() {
    var view = HandlerView(host: host(), volumesDirectory: "/p")
    view.seedDirectory = "/s"
    view.host?.status?.dpu = .init()
    view.host?.status?.dpu?.boot = "u/3"
    view.volumes = [
      BlockVolume(name: "blk-99-seed", file: "/s/seed-1.img", blockSize: 512, blockCount: 8, readOnly: true)
    ]
    view.functions = [BlockFunction(name: "blk-99-seed", volume: "blk-99-seed", readOnly: true)]
    view.interfaces = [PluggedInterface(index: 0, name: "eth0", mac: "02:00:00:00:00:01", tap: "t0")]
    let removal: [HandlerStep] = [
      .unplug(function: "blk-99-seed"), .deleteVolume("blk-99-seed"), .unplugInterface(view.interfaces[0]),
    ]
    #expect(HandlerPlan.steps(view) == [])
    #expect(HandlerPlan.bootInEffect(view) == "u/3")
    let key = ObjectKey(namespace: "n", name: "m")
    view.bootData = BootData.withdrawn(machine: key, machineUID: "other")
    #expect(HandlerPlan.steps(view) == [], "another machine's word")
    view.bootData = BootData.withdrawn(machine: key, machineUID: "u")
    #expect(HandlerPlan.steps(view) == removal)
    #expect(HandlerPlan.bootInEffect(view) == nil)
    view.bootData = nil
    view.host?.status?.dpu?.boot = "before/1"
    #expect(HandlerPlan.steps(view) == removal, "left by another machine")
    view.host?.status?.dpu?.boot = "u/3"
    view.host?.status?.claim = nil
    #expect(HandlerPlan.steps(view) == removal, "nobody holds the host")
    // A host that was torn away and registered again has no claim yet, and its server may be on.
    view.host?.status?.dpu = nil
    view.bootData = BootData(
      machine: key, machineUID: "u", boot: "u/3", userData: "", metaData: "", networkConfig: "", interfaces: [])
    #expect(HandlerPlan.steps(view) == [])
    view.bootData = BootData.withdrawn(machine: key, machineUID: "u")
    #expect(HandlerPlan.steps(view) == removal)
  }

  @Test("Boot data of a machine that does not hold the host is ignored")
  func foreignBootData() {
    let data = BootData(
      machine: ObjectKey(namespace: "n", name: "m"), machineUID: "x", boot: "x/1", userData: "", metaData: "",
      networkConfig: "", interfaces: [])
    #expect(HandlerPlan.effectiveBootData(data, host: host()) == nil)
  }

  @Test("Boot data survives the way through a secret, and damaged secrets are refused")
  func bootData() throws {
    let data = BootData(
      machine: ObjectKey(namespace: "n", name: "m"), machineUID: "u", boot: "u/1", userData: "#cloud-config\nä\n",
      metaData: "m", networkConfig: "n",
      interfaces: [GuestInterface(name: "eth0", mac: "02:00:00:00:00:01", address: "192.0.2.1")])
    #expect(try BootData(data.secret(host: "h")) == data)
    var random = SeededRandom(seed: 7)
    for _ in 0..<500 {
      var secret = data.secret(host: "h")
      let key = ["interfaces.json", "user-data", "meta-data", "network-config"].randomElement(using: &random) ?? ""
      var bytes = secret.data?[key] ?? .init()
      if bytes.isEmpty || random.chance(10) {
        secret.data?[key] = nil
      } else {
        let index = bytes.indices.randomElement(using: &random) ?? bytes.startIndex
        bytes[index] = UInt8.random(in: 0...255, using: &random)
        secret.data?[key] = bytes
      }
      // Either it is refused, or every name in it is harmless.
      if let read = try? BootData(secret) {
        #expect(read.interfaces.allSatisfy { GuestInterface.isPlain($0.name) && GuestInterface.isMAC($0.mac) })
      }
    }
  }

  @Test("Leases are read from dnsmasq's file, and nonsense is left out")
  func leases() {
    let text = """
      1795253724 02:1A:8c:75:68:95 192.168.94.148 m1 01:02:1a:8c:75:68:95
      duid 00:01:00:01:2e
      0 02:00:00:00:00:02 192.168.94.9 * *
      1795253724 02:00:00:00:00:03 fe80::1 x *
      1795253724 nonsense 10.0.0.1 x *
      17952
      """
    let leases = LeaseFile.parse(text.utf8)
    #expect(leases.count == 2)
    #expect(leases["02:1a:8c:75:68:95"]?.address == "192.168.94.148")
    var random = SeededRandom(seed: 3)
    for _ in 0..<2000 {
      let bytes = (0..<Int.random(in: 0...200, using: &random)).map { _ in UInt8.random(in: 0...255, using: &random) }
      for lease in LeaseFile.parse(bytes).values { #expect(LeaseFile.isIPv4(lease.address)) }
    }
  }

  @Test("Who is behind an address is read from the kernel's table, and nonsense is left out")
  func neighbours() {
    let text = """
      IP address       HW type     Flags       HW address            Mask     Device
      192.0.2.7        0x1         0x2         02:00:00:00:00:0A     *        yc0
      192.0.2.8        0x1         0x0         00:00:00:00:00:00     *        yc0
      192.0.2.9        0x1         0x2         02:00:00:00:00:0b     *        yc1
      192.0.2.10       0x1         0x6         02:00:00:00:00:0c     *        yc0
      192.0.2.11       0x1         0x2
      """
    let table = NeighbourTable.parse(text.utf8, device: "yc0")
    #expect(table == ["192.0.2.7": "02:00:00:00:00:0a", "192.0.2.10": "02:00:00:00:00:0c"])
    var random = SeededRandom(seed: 11)
    for _ in 0..<2000 {
      let bytes = (0..<Int.random(in: 0...200, using: &random)).map { _ in UInt8.random(in: 0...255, using: &random) }
      for mac in NeighbourTable.parse(bytes, device: "yc0").values { #expect(GuestInterface.isMAC(mac)) }
    }
  }

  @Test("An answer is the guest's by its MAC address or a lease of this boot, not by the address that it shall get")
  func answers() {
    let mac = "02:00:00:00:00:01"
    var interface = BareMetalHost.Interface(name: "eth0", mac: mac, address: "192.0.2.7")
    #expect(AnswerVerdict(for: interface, neighbour: nil) == .unproven)
    #expect(AnswerVerdict(for: interface, neighbour: mac) == .guest, "it gave itself the address")
    #expect(AnswerVerdict(for: interface, neighbour: "02:00:00:00:00:02") == .other(mac: "02:00:00:00:00:02"))
    interface.leasedAt = .now()
    #expect(AnswerVerdict(for: interface, neighbour: nil) == .guest)
    #expect(AnswerVerdict(for: interface, neighbour: "02:00:00:00:00:02") == .other(mac: "02:00:00:00:00:02"))
  }

  @Test("Merge patches say what changed and nothing else")
  func mergePatch() throws {
    let old: JSONValue = ["a": 1, "b": ["c": 2, "d": 3], "e": [1, 2]]
    let new: JSONValue = ["a": 1, "b": ["c": 4], "e": [1], "f": true]
    let patch = try #require(MergePatch.difference(from: old, to: new))
    #expect(patch == ["b": ["c": 4, "d": nil], "e": [1], "f": true])
    #expect(World.merge(old, patch) == new)
    #expect(MergePatch.difference(from: new, to: new) == nil)
  }
}
