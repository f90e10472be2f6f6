import JSON

#if canImport(Glibc)
  import Glibc
#elseif canImport(Musl)
  import Musl
#endif

/// Where the next boot starts from, as the BMC was told.
package struct BootSetting: Sendable, Hashable {
  package enum Enabled: String, Sendable, Hashable, CaseIterable {
    case disabled = "Disabled"
    case once = "Once"
    case continuous = "Continuous"
  }

  package enum Target: String, Sendable, Hashable, CaseIterable {
    case none = "None"
    case disk = "Hdd"
    case network = "Pxe"
  }

  package var enabled: Enabled
  package var target: Target

  package init(enabled: Enabled = .disabled, target: Target = .none) {
    self.enabled = enabled
    self.target = target
  }
}

/// What the chassis remembers without power.
struct ChassisRecord: Sendable, Hashable {
  var uuid: String
  /// What the power should be: a machine found otherwise after a crash is brought there, or told as off.
  var isOn = false
  var boot = BootSetting()

  /// Reads the record; a chassis that is new gets a fresh one.
  static func load(_ path: String) throws -> ChassisRecord {
    guard access(path, F_OK) == 0 else { return ChassisRecord(uuid: randomUUID()) }
    guard let value = try? JSONValue.parse(TextFile.readBytes(path, limit: 64 << 10)),
      let uuid = value["uuid"]?.stringValue, isUUID(uuid)
    else {
      throw SoftHostError(
        .file, operation: "read \(path)", message: "it is damaged; remove it to make a new chassis of this directory")
    }
    var record = ChassisRecord(uuid: uuid)
    record.isOn = value["power"]?.stringValue == "on"
    record.boot.enabled = value["bootEnabled"]?.stringValue.flatMap(BootSetting.Enabled.init) ?? .disabled
    record.boot.target = value["bootTarget"]?.stringValue.flatMap(BootSetting.Target.init) ?? .none
    return record
  }

  func save(_ path: String) throws {
    let value: JSONValue = [
      "uuid": .string(uuid), "power": isOn ? "on" : "off", "bootEnabled": .string(boot.enabled.rawValue),
      "bootTarget": .string(boot.target.rawValue),
    ]
    try TextFile.replace(path, with: value.serialize() + [0x0A])
  }

  /// A random UUID (RFC 9562, version 4).
  private static func randomUUID() -> String {
    var bytes = (0..<16).map { _ in UInt8.random(in: .min ... .max) }
    bytes[6] = bytes[6] & 0x0F | 0x40
    bytes[8] = bytes[8] & 0x3F | 0x80
    let hex = Hexadecimal.text(bytes)
    var text = ""
    for (index, character) in hex.enumerated() {
      if [8, 12, 16, 20].contains(index) { text.append("-") }
      text.append(character)
    }
    return text
  }

  private static func isUUID(_ text: String) -> Bool {
    text.utf8.count == 36 && text.allSatisfy { $0.isHexDigit || $0 == "-" }
  }
}

enum Hexadecimal {
  static func text(_ bytes: some Sequence<UInt8>) -> String {
    let digits = Array("0123456789abcdef".utf8)
    var text: [UInt8] = []
    for byte in bytes {
      text.append(digits[Int(byte >> 4)])
      text.append(digits[Int(byte & 15)])
    }
    return String(decoding: text, as: UTF8.self)
  }
}
