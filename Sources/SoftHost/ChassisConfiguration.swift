/// How a chassis is built.
public struct ChassisConfiguration: Sendable, Hashable {
  public enum Firmware: String, Sendable, Hashable, CaseIterable {
    case bios
    case uefi
  }

  /// The server's name: a label for people, and part of its serial number.
  public var name: String
  /// The directory that is the PCIe bus.
  public var busDirectory: String
  /// Where the chassis keeps what outlives it: power state, QEMU's sockets and pid.
  public var stateDirectory: String
  public var memoryMiB: Int
  public var processors: Int
  public var firmware: Firmware
  /// Nil detects what works.
  public var acceleration: Acceleration?
  /// Empty PCIe ports: the most functions that can be plugged at a time.
  public var ports: Int
  /// Where the guest's serial output is logged; empty logs nothing.
  public var consoleLog: String

  public init(
    name: String, busDirectory: String, stateDirectory: String, memoryMiB: Int = 512, processors: Int = 1,
    firmware: Firmware = .bios, acceleration: Acceleration? = nil, ports: Int = 12, consoleLog: String = ""
  ) {
    self.name = name
    self.busDirectory = busDirectory
    self.stateDirectory = stateDirectory
    self.memoryMiB = memoryMiB
    self.processors = processors
    self.firmware = firmware
    self.acceleration = acceleration
    self.ports = ports
    self.consoleLog = consoleLog
  }

  var monitorSocket: String { stateDirectory + "/qmp.sock" }
  var serialSocket: String { stateDirectory + "/serial.sock" }
  var pidFile: String { stateDirectory + "/qemu.pid" }
  var stateFile: String { stateDirectory + "/chassis.json" }
  /// Where QEMU writes a picture of the screen, for as long as it is being read.
  var screenFile: String { stateDirectory + "/screen.png" }
  var firmwareVariables: String { stateDirectory + "/uefi-vars.fd" }

  /// Throws where QEMU or the kernel would fail later with a message that nobody understands.
  func validate() throws {
    func check(_ condition: Bool, _ message: String) throws {
      guard condition else { throw SoftHostError(.configuration, operation: "build the chassis", message: message) }
    }
    let plain = name.utf8.allSatisfy {
      ($0 >= 0x61 && $0 <= 0x7A) || ($0 >= 0x41 && $0 <= 0x5A) || ($0 >= 0x30 && $0 <= 0x39) || $0 == 0x2D || $0 == 0x2E
    }
    try check(plain && !name.isEmpty && name.utf8.count <= 63, "the name must be 1 to 63 letters, digits, '-' or '.'")
    try check((64...(1 << 20)).contains(memoryMiB), "memory must be from 64 MiB to 1 TiB")
    try check((1...255).contains(processors), "processors must be from 1 to 255")
    try check((1...24).contains(ports), "ports must be from 1 to 24")
    for path in [busDirectory, stateDirectory, consoleLog] where path.contains(",") || path.contains("\n") {
      throw SoftHostError(
        .configuration, operation: "build the chassis", message: "the path \(path) has a comma or a line break")
    }
    for path in [monitorSocket, serialSocket] {
      try check(path.utf8.count <= 107, "the socket path \(path) is longer than 107 bytes; use a shorter directory")
    }
  }
}
