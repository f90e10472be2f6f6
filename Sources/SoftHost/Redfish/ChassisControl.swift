/// What the BMC needs of its chassis.
package protocol ChassisControl: Sendable {
  func snapshot() async -> ChassisSnapshot
  func reset(_ type: Chassis.ResetType) async throws
  func setBoot(_ boot: BootSetting) async throws
  /// What the screen shows now, as a PNG. Asked of a chassis with `ChassisSnapshot.hasScreen` only.
  func screenshot() async throws -> [UInt8]
}

extension ChassisControl {
  package func screenshot() async throws -> [UInt8] {
    throw SoftHostError(.conflict, operation: "take a picture of the screen", message: "the server has no screen")
  }
}

/// What the chassis is now.
package struct ChassisSnapshot: Sendable, Hashable {
  package struct NIC: Sendable, Hashable {
    package var id: String
    package var mac: String

    package init(id: String, mac: String) {
      self.id = id
      self.mac = mac
    }
  }

  package var name: String
  package var uuid: String
  package var power: Chassis.Power
  package var hasPanicked: Bool
  package var boot: BootSetting
  package var isUEFI: Bool
  package var memoryMiB: Int
  package var processors: Int
  package var architecture: String
  package var nics: [NIC]
  /// Whether pictures of a screen can be taken.
  package var hasScreen: Bool

  package init(
    name: String, uuid: String, power: Chassis.Power, hasPanicked: Bool = false, boot: BootSetting = BootSetting(),
    isUEFI: Bool = false, memoryMiB: Int = 512, processors: Int = 1, architecture: String = "x86_64", nics: [NIC] = [],
    hasScreen: Bool = false
  ) {
    self.name = name
    self.uuid = uuid
    self.power = power
    self.hasPanicked = hasPanicked
    self.boot = boot
    self.isUEFI = isUEFI
    self.memoryMiB = memoryMiB
    self.processors = processors
    self.architecture = architecture
    self.nics = nics
    self.hasScreen = hasScreen
  }
}

extension Chassis: ChassisControl {
  package func snapshot() -> ChassisSnapshot {
    let functions = (try? BusDirectory(path: configuration.busDirectory).scan().functions) ?? []
    let nics = functions.compactMap { function -> ChassisSnapshot.NIC? in
      guard case .nic(let mac, _) = function.kind else { return nil }
      return ChassisSnapshot.NIC(id: function.id, mac: mac)
    }
    return ChassisSnapshot(
      name: configuration.name, uuid: record.uuid, power: power, hasPanicked: machine?.signals.hasPanicked ?? false,
      boot: record.boot, isUEFI: QEMUCommandLine.usesUEFI(configuration), memoryMiB: configuration.memoryMiB,
      processors: configuration.processors, architecture: QEMUCommandLine.Architecture.native.rawValue, nics: nics,
      hasScreen: true)
  }
}
