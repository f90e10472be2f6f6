import JSON

/// The documents of the Redfish service (DMTF schemas), made of a snapshot. Pure.
enum RedfishDocuments {
  static let root = "/redfish/v1"
  static let system = root + "/Systems/1"
  static let resetTarget = system + "/Actions/ComputerSystem.Reset"
  static let manager = root + "/Managers/1"
  static let chassis = root + "/Chassis/1"
  static let sessions = root + "/SessionService/Sessions"
  static let firmwareVersion = "1.0.0"

  static func link(_ path: String) -> JSONValue { ["@odata.id": .string(path)] }

  static func resource(_ path: String, _ type: String, id: String, name: String, _ rest: JSONValue = [:]) -> JSONValue {
    var document = rest
    document["@odata.id"] = .string(path)
    document["@odata.type"] = .string("#" + type)
    document["Id"] = .string(id)
    document["Name"] = .string(name)
    return document
  }

  static func collection(_ path: String, _ type: String, name: String, members: [String]) -> JSONValue {
    [
      "@odata.id": .string(path), "@odata.type": .string("#\(type).\(type)"), "Name": .string(name),
      "Members": .array(members.map(link)), "Members@odata.count": .integer(Int64(members.count)),
    ]
  }

  static func serviceRoot(_ snapshot: ChassisSnapshot) -> JSONValue {
    resource(
      root + "/", "ServiceRoot.v1_15_0.ServiceRoot", id: "RootService", name: "YCloud SoftHost",
      [
        "RedfishVersion": "1.17.0", "UUID": .string(snapshot.uuid), "Vendor": "YCloud", "Product": "SoftHost",
        "Systems": link(root + "/Systems"), "Managers": link(root + "/Managers"), "Chassis": link(root + "/Chassis"),
        "SessionService": link(root + "/SessionService"), "Links": ["Sessions": link(sessions)],
      ])
  }

  static let serviceDocument: JSONValue = [
    "@odata.context": .string(RedfishMetadata.path),
    "value": .array(
      [
        ("Service", root + "/"), ("Systems", root + "/Systems"), ("Managers", root + "/Managers"),
        ("Chassis", root + "/Chassis"), ("SessionService", root + "/SessionService"), ("Sessions", sessions),
      ]
      .map { ["name": .string($0.0), "kind": "Singleton", "url": .string($0.1)] }),
  ]

  static func status(_ snapshot: ChassisSnapshot) -> JSONValue {
    [
      "State": snapshot.power == .off ? "StandbyOffline" : "Enabled",
      "Health": snapshot.hasPanicked ? "Critical" : "OK",
    ]
  }

  static func computerSystem(_ snapshot: ChassisSnapshot) -> JSONValue {
    let processors = Int64(snapshot.processors)
    return resource(
      system, "ComputerSystem.v1_20_0.ComputerSystem", id: "1", name: snapshot.name,
      [
        "SystemType": "Physical", "Manufacturer": "YCloud", "Model": "SoftHost",
        "SerialNumber": .string(snapshot.name), "HostName": .string(snapshot.name), "UUID": .string(snapshot.uuid),
        "BiosVersion": .string(snapshot.isUEFI ? "EDK II" : "SeaBIOS"),
        "PowerState": .string(snapshot.power.rawValue), "Status": status(snapshot),
        "ProcessorSummary": [
          "Count": 1, "CoreCount": .integer(processors), "LogicalProcessorCount": .integer(processors),
          "Model": "QEMU virtual CPU", "Status": ["State": "Enabled", "Health": "OK"],
        ],
        "MemorySummary": [
          "TotalSystemMemoryGiB": .number(Double(snapshot.memoryMiB) / 1024),
          "Status": ["State": "Enabled", "Health": "OK"],
        ],
        "Boot": boot(snapshot), "Actions": ["#ComputerSystem.Reset": resetAction],
        "Processors": link(system + "/Processors"), "EthernetInterfaces": link(system + "/EthernetInterfaces"),
        "Links": ["ManagedBy": [link(manager)], "Chassis": [link(chassis)]],
      ])
  }

  private static func boot(_ snapshot: ChassisSnapshot) -> JSONValue {
    [
      "BootSourceOverrideEnabled": .string(snapshot.boot.enabled.rawValue),
      "BootSourceOverrideEnabled@Redfish.AllowableValues": values(BootSetting.Enabled.self),
      "BootSourceOverrideTarget": .string(snapshot.boot.target.rawValue),
      "BootSourceOverrideTarget@Redfish.AllowableValues": values(BootSetting.Target.self),
      "BootSourceOverrideMode": .string(bootMode(snapshot)),
      "BootSourceOverrideMode@Redfish.AllowableValues": [.string(bootMode(snapshot))],
    ]
  }

  static func bootMode(_ snapshot: ChassisSnapshot) -> String { snapshot.isUEFI ? "UEFI" : "Legacy" }

  private static func values<T: CaseIterable & RawRepresentable>(_: T.Type) -> JSONValue where T.RawValue == String {
    .array(T.allCases.map { .string($0.rawValue) })
  }

  private static let resetAction: JSONValue = [
    "target": .string(resetTarget),
    "@Redfish.ActionInfo": .string(system + "/ResetActionInfo"),
    "ResetType@Redfish.AllowableValues": values(Chassis.ResetType.self),
  ]

  static let resetActionInfo = resource(
    system + "/ResetActionInfo", "ActionInfo.v1_3_0.ActionInfo", id: "ResetActionInfo", name: "Reset",
    [
      "Parameters": [
        [
          "Name": "ResetType", "Required": true, "DataType": "String",
          "AllowableValues": values(Chassis.ResetType.self),
        ]
      ]
    ])

  static func processor(_ snapshot: ChassisSnapshot) -> JSONValue {
    let isARM = snapshot.architecture == "aarch64"
    return resource(
      system + "/Processors/1", "Processor.v1_16_0.Processor", id: "1", name: "Processor 1",
      [
        "ProcessorType": "CPU", "ProcessorArchitecture": isARM ? "ARM" : "x86",
        "InstructionSet": isARM ? "ARM-A64" : "x86-64", "Model": "QEMU virtual CPU", "Manufacturer": "QEMU",
        "TotalCores": .integer(Int64(snapshot.processors)), "TotalThreads": .integer(Int64(snapshot.processors)),
        "Status": ["State": "Enabled", "Health": "OK"],
      ])
  }

  static func ethernetInterface(_ nic: ChassisSnapshot.NIC) -> JSONValue {
    resource(
      system + "/EthernetInterfaces/" + nic.id, "EthernetInterface.v1_9_0.EthernetInterface", id: nic.id,
      name: "Network card of the DPU",
      [
        "MACAddress": .string(nic.mac), "PermanentMACAddress": .string(nic.mac), "SpeedMbps": nil,
        "Status": ["State": "Enabled", "Health": "OK"],
      ])
  }

  static func managerDocument(_ snapshot: ChassisSnapshot) -> JSONValue {
    var links: JSONValue = ["ManagerForServers": [link(system)], "ManagerForChassis": [link(chassis)]]
    if snapshot.hasScreen { links["Oem"] = ScreenshotDocuments.managerLinks }
    return resource(
      manager, "Manager.v1_18_0.Manager", id: "1", name: "BMC of \(snapshot.name)",
      [
        "ManagerType": "BMC", "FirmwareVersion": .string(firmwareVersion), "Model": "SoftHost BMC",
        "UUID": .string(snapshot.uuid), "PowerState": "On", "Status": ["State": "Enabled", "Health": "OK"],
        "ServiceEntryPointUUID": .string(snapshot.uuid),
        "Links": links,
      ])
  }

  static func chassisDocument(_ snapshot: ChassisSnapshot) -> JSONValue {
    resource(
      chassis, "Chassis.v1_23_0.Chassis", id: "1", name: snapshot.name,
      [
        "ChassisType": "RackMount", "Manufacturer": "YCloud", "Model": "SoftHost",
        "SerialNumber": .string(snapshot.name), "PowerState": .string(snapshot.power.rawValue),
        "Status": status(snapshot), "Power": link(chassis + "/Power"), "Thermal": link(chassis + "/Thermal"),
        "Links": ["ComputerSystems": [link(system)], "ManagedBy": [link(manager)]],
      ])
  }

  /// The server is not a thing that draws power or gets warm: there is nothing to measure.
  static let power = resource(
    chassis + "/Power", "Power.v1_7_1.Power", id: "Power", name: "Power", ["PowerControl": [], "PowerSupplies": []])
  static let thermal = resource(
    chassis + "/Thermal", "Thermal.v1_7_1.Thermal", id: "Thermal", name: "Thermal", ["Fans": [], "Temperatures": []])

  static func sessionService(timeout: Duration) -> JSONValue {
    resource(
      root + "/SessionService", "SessionService.v1_1_8.SessionService", id: "SessionService", name: "Sessions",
      [
        "ServiceEnabled": true, "SessionTimeout": .integer(timeout.components.seconds), "Sessions": link(sessions),
        "Status": ["State": "Enabled", "Health": "OK"],
      ])
  }

  static func session(_ session: Sessions.Session) -> JSONValue {
    resource(
      sessions + "/" + session.id, "Session.v1_6_0.Session", id: session.id, name: "Session",
      ["UserName": .string(session.user), "SessionType": "Redfish"])
  }

  /// An entity tag: equal documents have equal ones (FNV-1a over the canonical text).
  static func etag(_ document: JSONValue) -> String { etag(document.serialize()) }

  static func etag(_ bytes: [UInt8]) -> String {
    var hash: UInt64 = 0xCBF2_9CE4_8422_2325
    for byte in bytes { hash = (hash ^ UInt64(byte)) &* 0x100_0000_01B3 }
    return "\"" + String(hash, radix: 16) + "\""
  }
}
