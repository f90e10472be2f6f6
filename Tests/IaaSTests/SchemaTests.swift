import Foundation
import IaaS
import JSON
import Kubernetes
import Testing
import Yams

/// The schemas in deploy/crds and the Swift types say the same.
@Suite("Schemas")
struct SchemaTests {
  static let kinds = [
    "baremetalhosts", "baremetalmachines", "baremetalmachinemigrations", "baremetalmachinesnapshots",
    "baremetalmachinerestores", "baremetalmachineclones",
  ]

  static func definition(_ plural: String) throws -> [String: Any] {
    let root = URL(filePath: #filePath).deletingLastPathComponent().deletingLastPathComponent()
      .deletingLastPathComponent()
    let text = try String(contentsOf: root.appending(path: "deploy/crds/\(plural).yaml"), encoding: .utf8)
    return try #require(try Yams.load(yaml: text) as? [String: Any])
  }

  static func schema(_ plural: String) throws -> [String: Any] {
    let spec = try #require(try definition(plural)["spec"] as? [String: Any])
    let version = try #require((spec["versions"] as? [[String: Any]])?.first)
    return try #require((version["schema"] as? [String: Any])?["openAPIV3Schema"] as? [String: Any])
  }

  /// Every property of a schema as a path, with its schema.
  static func properties(_ schema: [String: Any], _ path: String = "") -> [(path: String, schema: [String: Any])] {
    var result: [(String, [String: Any])] = []
    for (name, value) in schema["properties"] as? [String: [String: Any]] ?? [:] {
      let inner = path.isEmpty ? name : "\(path).\(name)"
      result.append((inner, value))
      result += properties(value, inner)
    }
    if let items = schema["items"] as? [String: Any] { result += properties(items, path + "[]") }
    return result
  }

  /// Every member of a JSON value as a path.
  static func members(_ value: JSONValue, _ path: String = "") -> Set<String> {
    switch value {
    case .object(let object):
      var result: Set<String> = []
      for (name, member) in object {
        let inner = path.isEmpty ? name : "\(path).\(name)"
        result.insert(inner)
        // Maps have names of the user's own.
        if name != "matchLabels" { result.formUnion(members(member, inner)) }
      }
      return result
    case .array(let elements): return elements.reduce(into: []) { $0.formUnion(members($1, path + "[]")) }
    default: return []
    }
  }

  static func complete(_ plural: String) throws -> JSONValue {
    let encoder = JSONEncoder()
    let data =
      switch plural {
      case "baremetalhosts": try encoder.encode(completeHost())
      case "baremetalmachinemigrations": try encoder.encode(completeMigration())
      case "baremetalmachinesnapshots": try encoder.encode(completeSnapshot())
      case "baremetalmachinerestores": try encoder.encode(completeRestore())
      case "baremetalmachineclones": try encoder.encode(completeClone())
      default: try encoder.encode(completeMachine())
      }
    return try JSONValue.parse(Array(data))
  }

  @Test("Every field of the types is in the schema, and the other way round", arguments: kinds)
  func sameFields(_ plural: String) throws {
    let declared = Set(try Self.properties(Self.schema(plural)).map(\.path)).filter { !$0.hasPrefix("metadata.") }
    let used = try Self.members(Self.complete(plural)).filter { !$0.hasPrefix("metadata.") }
    #expect(declared.subtracting(used) == [], "in the schema, but not in the type")
    #expect(used.subtracting(declared) == [], "in the type, but not in the schema")
  }

  @Test("Every field is described", arguments: kinds)
  func described(_ plural: String) throws {
    // The API server allows nothing but restrictions of the name in a root's metadata.
    for (path, schema) in Self.properties(try Self.schema(plural)) where path != "metadata" {
      let text = schema["description"] as? String ?? ""
      #expect(text.count > 10, "\(plural) \(path)")
    }
  }

  @Test("Every string of a spec is bounded, and every list", arguments: kinds)
  func bounded(_ plural: String) throws {
    for (path, schema) in Self.properties(try Self.schema(plural)) where path.hasPrefix("spec.") {
      switch schema["type"] as? String {
      case "string":
        let bounds = ["maxLength", "enum", "pattern"].filter { schema[$0] != nil }
        #expect(!bounds.isEmpty, "\(path)")
      case "array": #expect(schema["maxItems"] != nil, "\(path)")
      default: break
      }
    }
  }

  @Test("The schema's enumerations are those of the types")
  func enumerations() throws {
    let machine = Dictionary(
      uniqueKeysWithValues: Self.properties(try Self.schema("baremetalmachines")).map { ($0.path, $0.schema) })
    #expect(
      machine["status.phase"]?["enum"] as? [String] == BareMetalMachine.Phase.allCases.map(\.rawValue))
    let migration = Dictionary(
      uniqueKeysWithValues: Self.properties(try Self.schema("baremetalmachinemigrations")).map { ($0.path, $0.schema) })
    #expect(
      migration["status.phase"]?["enum"] as? [String] == BareMetalMachineMigration.Phase.allCases.map(\.rawValue))
    func names(_ plural: String, _ path: String) throws -> [String]? {
      try Self.properties(Self.schema(plural)).first { $0.path == path }?.schema["enum"] as? [String]
    }
    typealias Snapshot = BareMetalMachineSnapshot
    let snapshots = "baremetalmachinesnapshots"
    #expect(try names(snapshots, "status.phase") == Snapshot.Phase.allCases.map(\.rawValue))
    #expect(try names(snapshots, "status.consistency") == Snapshot.Consistency.allCases.map(\.rawValue))
    #expect(try names(snapshots, "spec.consistency") == Snapshot.Wish.allCases.map(\.rawValue))
    #expect(try names(snapshots, "spec.deletionPolicy") == Snapshot.DeletionPolicy.allCases.map(\.rawValue))
    let restores = BareMetalMachineRestore.Phase.allCases.map(\.rawValue)
    #expect(try names("baremetalmachinerestores", "status.phase") == restores)
    #expect(
      try names("baremetalmachineclones", "status.phase") == BareMetalMachineClone.Phase.allCases.map(\.rawValue))
  }

  @Test("An object with nothing but what is required decodes, with the schema's defaults")
  func defaults() throws {
    let machine = try JSONDecoder().decode(
      BareMetalMachine.self,
      from: Data(#"{"metadata":{"name":"a"},"spec":{"disks":[{"name":"root","template":{"size":"1Gi"}}]}}"#.utf8))
    #expect(machine.spec.running)
    #expect(machine.spec.interfaces == [.init(name: "eth0")])
    #expect(machine.spec.disks[0].readOnly == false)
    let host = try JSONDecoder().decode(
      BareMetalHost.self,
      from: Data(
        #"{"metadata":{"name":"h"},"spec":{"bmc":{"address":"ipmi://b","credentialsSecretRef":{"name":"s"}},"dpu":{"node":"d"}}}"#
          .utf8))
    #expect(host.spec.bmc.credentialsSecretRef.namespace == "ycloud-system")
    #expect(!host.spec.maintenance && !host.spec.bmc.insecureSkipVerify)
  }

  @Test("Derived MAC addresses are unicast, local, stable and differ")
  func derivedAddresses() {
    var seen: Set<String> = []
    for machine in 0..<200 {
      for index in 0..<4 {
        let mac = MACAddress.derived(uid: "0b5c1d2e-\(machine)", index: index)
        #expect(mac.hasPrefix("02:") && mac.count == 17)
        #expect(mac == MACAddress.derived(uid: "0b5c1d2e-\(machine)", index: index))
        seen.insert(mac)
      }
    }
    #expect(seen.count == 800)
  }

  // MARK: Objects with every field

  static func completeHost() -> BareMetalHost {
    var host = BareMetalHost(
      metadata: ObjectMeta(name: "h"),
      spec: .init(
        bmc: .init(
          address: "ipmi://b", credentialsSecretRef: .init(name: "s"), caBundle: "eA==", insecureSkipVerify: true),
        dpu: .init(node: "d"), taints: [.init(key: "k", value: "v")], maintenance: true, drain: true,
        powerCut: true))
    var status = BareMetalHost.Status()
    status.observedGeneration = 1
    status.phase = .available
    status.power = .off
    status.powerReadAt = .now()
    var hardware = BareMetalHost.Hardware()
    hardware.health = "OK"
    hardware.firmwareMode = "UEFI"
    hardware.thermal = .init(health: "OK", warmestSensor: "s", warmestCelsius: 1, fans: 1)
    hardware.consumedWatts = 1
    hardware.powerSupplies = [.init(name: "p", health: "OK", capacityWatts: 1)]
    hardware.manufacturer = "m"
    hardware.model = "m"
    hardware.serialNumber = "s"
    hardware.biosVersion = "b"
    hardware.bmcFirmwareVersion = "b"
    hardware.cpu = .init(count: 1, cores: 1, threads: 1, model: "m", architecture: "a")
    hardware.memoryMiB = 1
    hardware.nics = [.init(name: "n", mac: "m", speedMbps: 1)]
    hardware.drives = [.init(name: "d", model: "m", serialNumber: "s", capacityBytes: 1)]
    status.hardware = hardware
    var dpu = BareMetalHost.DPUStatus()
    dpu.ready = true
    dpu.version = "v"
    dpu.boot = "b"
    dpu.slots = [.init(name: "s", kind: .disk, device: "d", volume: "v", state: "p")]
    dpu.interfaces = [
      .init(name: "e", mac: "m", address: "a", leasedAt: .now(), reachable: true, reachableAt: .now())
    ]
    dpu.conditions = [condition]
    dpu.snapshot = .init(token: "t", takenAt: .now(), pauseMicroseconds: 1, error: "e", unsupported: true)
    status.dpu = dpu
    status.snapshot = .init(token: "t", machineUID: "u", volumes: ["v"])
    status.claim = .init(namespace: "n", name: "m", uid: "u")
    status.leftovers = [.init(volume: "v", machine: "n/m", since: .now())]
    status.conditions = [condition]
    host.status = status
    return host
  }

  static var condition: Condition {
    Condition(type: "Ready", status: .true, reason: "r", message: "m", observedGeneration: 1)
  }

  static func completeMigration() -> BareMetalMachineMigration {
    var migration = BareMetalMachineMigration(
      metadata: ObjectMeta(name: "g", namespace: "n"),
      spec: .init(
        machineName: "m", targetHost: "h", hostSelector: .init(matchLabels: ["a": "b"]), graceSeconds: 1))
    var timeline = BareMetalMachineMigration.Timeline()
    timeline.accepted = .now()
    timeline.reserved = .now()
    timeline.wentOff = .now()
    timeline.stopped = .now()
    timeline.released = .now()
    timeline.poweredOn = .now()
    timeline.fenceSeconds = 1
    timeline.ownSeconds = 1
    timeline.downSeconds = 1
    var status = BareMetalMachineMigration.Status()
    status.phase = .pending
    status.reason = "r"
    status.message = "m"
    status.machineUID = "u"
    status.sourceHost = "h"
    status.targetHost = "t"
    status.beyondReturn = true
    status.timeline = timeline
    status.conditions = [condition]
    migration.status = status
    return migration
  }

  static func completeSnapshot() -> BareMetalMachineSnapshot {
    var disk = BareMetalMachineSnapshot.Disk(name: "d", claim: "c", volume: "v", volumeSnapshot: "s")
    disk.storageClassName = "s"
    disk.bootOrder = 1
    disk.readOnly = true
    disk.ownedByMachine = true
    disk.restoreSize = "1Gi"
    disk.readyToUse = true
    var status = BareMetalMachineSnapshot.Status()
    status.observedGeneration = 1
    status.phase = .ready
    status.message = "m"
    status.readyToUse = true
    status.creationTime = .now()
    status.consistency = .crash
    status.machineUID = "u"
    status.machineGeneration = 1
    status.machineBoot = 1
    status.machineSpec = [:]
    status.host = "h"
    status.attempt = 1
    status.attemptedAt = .now()
    status.pauseMicroseconds = 1
    status.disks = [disk]
    status.conditions = [condition]
    return BareMetalMachineSnapshot(
      metadata: ObjectMeta(name: "s", namespace: "n"),
      spec: .init(machineName: "m", volumeSnapshotClassName: "c"), status: status)
  }

  static func completeRestore() -> BareMetalMachineRestore {
    var status = BareMetalMachineRestore.Status()
    status.observedGeneration = 1
    status.phase = .succeeded
    status.message = "m"
    status.machineUID = "u"
    status.snapshotUID = "u"
    status.startsMachine = true
    status.previousSnapshot = "p"
    status.previousAttempt = 1
    status.disks = [.init(name: "d", claim: "c", replaces: "o", bound: true)]
    status.startedAt = .now()
    status.completedAt = .now()
    status.conditions = [condition]
    return BareMetalMachineRestore(
      metadata: ObjectMeta(name: "r", namespace: "n"),
      spec: .init(snapshotName: "s", machineName: "m", stopMachine: true), status: status)
  }

  static func completeClone() -> BareMetalMachineClone {
    var status = BareMetalMachineClone.Status()
    status.observedGeneration = 1
    status.phase = .succeeded
    status.message = "m"
    status.snapshotName = "s"
    status.replicas = 1
    status.created = 1
    status.ready = 1
    status.running = 1
    status.machines = [.init(name: "m", phase: "Running", volumesReady: true, message: "m")]
    status.conditions = [condition]
    return BareMetalMachineClone(
      metadata: ObjectMeta(name: "c", namespace: "n"),
      spec: .init(
        source: .init(machineName: "m", snapshotName: "s"), replicas: 1, namePattern: "m-{index}", firstIndex: 1,
        running: true, addresses: ["192.0.2.1"]), status: status)
  }

  static func completeMachine() -> BareMetalMachine {
    var source = BareMetalMachine.Source(persistentVolumeClaim: .init(name: "i", namespace: "n"))
    source.volumeSnapshot = .init(name: "s")
    var machine = BareMetalMachine(
      metadata: ObjectMeta(name: "m", namespace: "n"),
      spec: .init(
        hostName: "h", hostSelector: .init(matchLabels: ["a": "b"]),
        tolerations: [.init(key: "k", operator: .equal, value: "v", effect: "NoSchedule")],
        disks: [
          .init(
            name: "d", bootOrder: 1,
            limits: .init(iops: 1000, bandwidth: "4Mi", readBandwidth: "3Mi", writeBandwidth: "2Mi"),
            existingClaim: .init(claimName: "c"),
            template: .init(
              size: "1Gi", storageClassName: "s",
              source: source))
        ],
        interfaces: [.init(name: "e", macAddress: "02:00:00:00:00:01", address: "192.0.2.1")],
        cloudInit: .init(userData: "u", userDataSecretRef: .init(name: "s"), networkData: "n")))
    var status = BareMetalMachine.Status()
    status.observedGeneration = 1
    status.phase = .running
    status.message = "m"
    status.host = "h"
    status.boot = 1
    status.bootedAt = .now()
    status.observedRestart = "1"
    status.addresses = [.init(interface: "e", mac: "m", address: "a")]
    status.volumes = [.init(disk: "d", claim: "c", volume: "v", attached: true, bootOrder: 1)]
    status.volumes?[0].function = "blk-01-v"
    status.volumes?[0].serial = "v"
    status.volumes?[0].device = "/dev/disk/by-id/virtio-v"
    status.volumes?[0].capacity = "1Gi"
    status.volumes?[0].limits = machine.spec.disks[0].limits
    var timeline = BareMetalMachine.Timeline()
    timeline.applied = .now()
    timeline.hostClaimed = .now()
    timeline.volumesReady = .now()
    timeline.disksAttached = .now()
    timeline.poweredOn = .now()
    timeline.leased = .now()
    timeline.reachable = .now()
    timeline.ownSeconds = 1
    timeline.guestSeconds = 1
    timeline.totalSeconds = 2
    status.timeline = timeline
    status.conditions = [condition]
    machine.status = status
    return machine
  }
}
