import BMC
import JSON
import Testing
import TestSupport

@Suite struct RedfishDecisionTests {
  private let all: Set<String> = [
    "On", "ForceOff", "GracefulShutdown", "ForceRestart", "GracefulRestart", "PowerCycle",
  ]

  @Test func takesWhatIsNamedAlike() {
    #expect(RedfishPower.plan(.on, allowed: all, state: .off) == .reset("On"))
    #expect(RedfishPower.plan(.forceOff, allowed: all, state: .on) == .reset("ForceOff"))
    #expect(RedfishPower.plan(.powerCycle, allowed: all, state: .on) == .reset("PowerCycle"))
    // A BMC that does not say what it allows is asked for the plain thing.
    #expect(RedfishPower.plan(.gracefulRestart, allowed: [], state: .on) == .reset("GracefulRestart"))
  }

  @Test func fallsBackWithoutLosingData() {
    #expect(RedfishPower.plan(.powerCycle, allowed: ["On", "ForceOff"], state: .on) == .offThenOn)
    #expect(RedfishPower.plan(.gracefulShutdown, allowed: ["PushPowerButton"], state: .on) == .reset("PushPowerButton"))
    #expect(RedfishPower.plan(.gracefulShutdown, allowed: ["ForceOff"], state: .on) == .unsupported)
    #expect(RedfishPower.plan(.gracefulRestart, allowed: ["ForceRestart"], state: .on) == .unsupported)
    #expect(RedfishPower.plan(.forceRestart, allowed: ["PowerCycle"], state: .on) == .reset("PowerCycle"))
  }

  @Test func doesNotPressAToggleInTheDark() {
    #expect(RedfishPower.plan(.on, allowed: ["PushPowerButton"], state: .off) == .reset("PushPowerButton"))
    #expect(RedfishPower.plan(.on, allowed: ["PushPowerButton"], state: .unknown) == .unsupported)
    #expect(RedfishPower.plan(.gracefulShutdown, allowed: ["PushPowerButton"], state: .unknown) == .unsupported)
    #expect(RedfishPower.plan(.on, allowed: all, state: .on) == .nothing)
  }

  @Test func nullIsUnknown() {
    #expect(RedfishPower.state(of: ["PowerState": nil]) == .unknown)
    #expect(RedfishPower.state(of: [:]) == .unknown)
    #expect(RedfishPower.state(of: ["PowerState": "Sleeping"]) == .unknown)
    #expect(RedfishPower.state(of: ["PowerState": "PoweringOff"]) == .poweringOff)
  }

  @Test func inventoryOfNullsIsEmpty() {
    let system: JSONValue = [
      "Manufacturer": nil, "Model": "  ", "SerialNumber": 7, "BiosVersion": nil, "MemorySummary": nil,
      "ProcessorSummary": ["Count": nil, "Model": nil, "CoreCount": -1],
    ]
    var parts = RedfishInventory.Parts(system: system)
    parts.nics = [["MACAddress": nil, "SpeedMbps": nil], nil]
    parts.processors = [["TotalCores": nil]]
    let inventory = RedfishInventory.inventory(parts)
    #expect(inventory.manufacturer == nil && inventory.model == nil && inventory.serialNumber == nil)
    #expect(inventory.memoryMiB == nil)
    #expect(inventory.cpu == HardwareInventory.CPU(count: 1))
    #expect(inventory.nics.count == 2)
  }

  @Test func sumsProcessorsOnlyWhenAllTell() {
    var parts = RedfishInventory.Parts(system: [:])
    parts.processors = [
      ["ProcessorType": "CPU", "TotalCores": 32, "TotalThreads": 64, "InstructionSet": "x86-64", "Model": "A"],
      ["ProcessorType": "CPU", "TotalCores": 32, "TotalThreads": nil],
      ["ProcessorType": "GPU", "TotalCores": 1000], ["ProcessorType": "CPU", "Status": ["State": "Absent"]],
    ]
    let cpu = RedfishInventory.inventory(parts).cpu
    #expect(cpu == HardwareInventory.CPU(count: 2, cores: 64, threads: nil, model: "A", architecture: "x86_64"))
  }

  @Test(
    "Temperatures, fans and power supplies are told in whole units, with the worst health; what is absent is left out")
  func thermalAndPower() {
    var parts = RedfishInventory.Parts(
      system: ["Status": ["HealthRollup": "Warning", "Health": "OK"], "Boot": ["BootSourceOverrideMode": "UEFI"]])
    parts.thermal = [
      "Temperatures": [
        ["Name": "Intake", "ReadingCelsius": 25.4, "Status": ["Health": "OK"]],
        ["Name": "CPU 1", "ReadingCelsius": 71, "Status": ["Health": "Critical"]],
        ["Name": "CPU 2", "ReadingCelsius": 99, "Status": ["State": "Absent"]],
        ["Name": "broken", "ReadingCelsius": nil, "Status": ["Health": "fine"]],
        ["Name": "mad", "ReadingCelsius": 1e300],
      ],
      "Fans": [["Name": "A", "Status": ["Health": "Warning"]], ["Name": "B", "Status": ["State": "Absent"]]],
    ]
    parts.power = [
      "PowerControl": [["PowerConsumedWatts": 312.6]],
      "PowerSupplies": [
        ["Name": "PSU 2", "PowerCapacityWatts": 800, "Status": ["Health": "Critical"]],
        ["Name": "PSU 1", "PowerCapacityWatts": -1, "Status": ["State": "Enabled"]],
      ],
    ]
    let inventory = RedfishInventory.inventory(parts)
    #expect(inventory.health == "Warning" && inventory.firmwareMode == "UEFI")
    #expect(
      inventory.thermal
        == HardwareInventory.Thermal(health: "Critical", warmestSensor: "CPU 1", warmestCelsius: 71, fans: 1))
    #expect(inventory.consumedWatts == 313)
    #expect(
      inventory.powerSupplies == [
        .init(name: "PSU 1"), .init(name: "PSU 2", health: "Critical", capacityWatts: 800),
      ])
  }

  @Test func survivesRandomDocuments() {
    var random = SeededGenerator(seed: 11)
    for _ in 0..<5_000 {
      let document = RedfishDecisionTests.random(depth: 4, &random)
      var parts = RedfishInventory.Parts(system: document)
      parts.processors = [RedfishDecisionTests.random(depth: 2, &random)]
      parts.nics = [RedfishDecisionTests.random(depth: 2, &random)]
      parts.drives = [RedfishDecisionTests.random(depth: 2, &random)]
      parts.thermal = RedfishDecisionTests.random(depth: 3, &random)
      parts.power = RedfishDecisionTests.random(depth: 3, &random)
      _ = RedfishInventory.inventory(parts)
      _ = RedfishPower.state(of: document)
    }
  }

  private static func random(depth: Int, _ random: inout SeededGenerator) -> JSONValue {
    let names = [
      "Manufacturer", "ProcessorSummary", "Count", "CoreCount", "MemorySummary", "TotalSystemMemoryGiB", "PowerState",
      "MACAddress", "SpeedMbps", "CapacityBytes", "TotalCores", "Id", "Status", "State",
    ]
    switch Int.random(in: 0...(depth > 0 ? 7 : 5), using: &random) {
    case 0: return nil
    case 1: return .bool(.random(using: &random))
    case 2: return .integer(.random(in: .min ... .max, using: &random))
    case 3: return .number([1e308, -1e308, 0.5, -0.0].randomElement(using: &random) ?? 0)
    case 4: return .string(String(repeating: "\u{1F600}", count: Int.random(in: 0...300, using: &random)))
    case 5: return .string("On")
    case 6: return .array((0..<3).map { _ in self.random(depth: depth - 1, &random) })
    default:
      return .object(
        Dictionary(
          (0..<5).map { _ in
            (names[Int.random(in: 0..<names.count, using: &random)], self.random(depth: depth - 1, &random))
          }, uniquingKeysWith: { $1 }))
    }
  }
}
