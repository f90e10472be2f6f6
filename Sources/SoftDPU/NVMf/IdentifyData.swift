/// What Identify and the discovery log answer, as bytes (NVMe Base 1.4, section 5.15; NVMe-oF 1.1, section 5.3).
enum IdentifyData {
  /// What a controller says of itself.
  struct Controller {
    var subsystemNQN: String
    var serialNumber: String
    var modelNumber: String
    var controllerID: UInt16
    var isDiscovery: Bool
    var maximumNamespaces: UInt32
    /// Bytes that one command may move, a power of two of at least 4096.
    var maximumTransfer: Int
    /// Data that may come with a command, in bytes.
    var inCapsuleLength: Int
    var queueDepth: Int
  }

  static let firmware = "ycloud01"
  /// How many event requests may be open.
  static let maximumEventRequests = 4

  static func page(_ controller: Controller) -> [UInt8] {
    var page = LittleEndianPage(4096)
    page.set(controller.serialNumber, at: 4, width: 20, filler: 0x20)
    page.set(controller.modelNumber, at: 24, width: 40, filler: 0x20)
    page.set(firmware, at: 64, width: 8, filler: 0x20)
    page.set(UInt8(6), at: 72)
    page.set(UInt8((controller.maximumTransfer / 4096).trailingZeroBitCount), at: 77)
    page.set(controller.controllerID, at: 78)
    page.set(NVMe.version, at: 80)
    page.set(UInt32(1), at: 96)  // host identifiers of 128 bits
    page.set(UInt8(controller.isDiscovery ? 2 : 1), at: 111)
    page.set(UInt8(3), at: 258)  // aborts
    page.set(UInt8(maximumEventRequests - 1), at: 259)
    page.set(UInt8(1 << 2), at: 261)  // log pages with an offset and a long length
    page.set(UInt16(1), at: 320)  // keep-alive in steps of 100 ms
    page.set(UInt16(controller.queueDepth), at: 514)
    page.set(UInt32(1 | 1 << 20), at: 536)  // SGLs, with offsets
    page.set(controller.subsystemNQN, at: 768, width: 256, filler: 0)
    guard !controller.isDiscovery else { return page.bytes }
    page.set(UInt8(0b11), at: 76)  // several ports and controllers
    page.set(UInt32(1 << 8), at: 92)  // notices of changed namespaces
    page.set(UInt8(0x66), at: 512)
    page.set(UInt8(0x44), at: 513)
    page.set(controller.maximumNamespaces, at: 516)
    page.set(UInt16(1 << 0 | 1 << 2 | 1 << 3), at: 520)  // compare, dataset management, write zeroes
    page.set(UInt8(0b111), at: 525)  // a volatile cache, which flush with all namespaces empties
    page.set(UInt32((64 + controller.inCapsuleLength) / 16), at: 1792)
    page.set(UInt32(1), at: 1796)
    page.set(UInt8(1), at: 1803)
    return page.bytes
  }

  /// What a namespace says of itself.
  struct Namespace {
    var blocks: UInt64
    var blockSize: UInt32
    var physicalBlockSize: UInt32
    var isReadOnly: Bool
    var canUnmap: Bool
    var nguid: [UInt8]
    var eui64: [UInt8]
    var uuid: [UInt8]
  }

  static func page(_ namespace: Namespace) -> [UInt8] {
    var page = LittleEndianPage(4096)
    for offset in [0, 8, 16] { page.set(namespace.blocks, at: offset) }
    page.set(UInt8((namespace.canUnmap ? 1 : 0) | 1 << 4), at: 24)
    page.set(UInt8(1), at: 30)  // may be shared
    page.set(UInt8(namespace.canUnmap ? 0b1001 : 0), at: 33)  // what was unmapped reads as zeros
    let unit = UInt16(clamping: max(1, namespace.physicalBlockSize / namespace.blockSize) - 1)
    for offset in [64, 66, 68, 70] { page.set(unit, at: offset) }
    page.set(UInt8(namespace.isReadOnly ? 1 : 0), at: 99)
    page.set(namespace.nguid, at: 104)
    page.set(namespace.eui64, at: 120)
    page.set(UInt8(namespace.blockSize.trailingZeroBitCount), at: 130)
    return page.bytes
  }

  /// The identifiers of a namespace, each with its type and length.
  static func descriptors(_ namespace: Namespace) -> [UInt8] {
    var page = LittleEndianPage(4096)
    var offset = 0
    for (type, value) in [(UInt8(1), namespace.eui64), (2, namespace.nguid), (3, namespace.uuid)]
    where value.contains(where: { $0 != 0 }) {
      page.set(type, at: offset)
      page.set(UInt8(value.count), at: offset + 1)
      page.set(value, at: offset + 4)
      offset += 4 + value.count
    }
    return page.bytes
  }

  /// The numbers of the namespaces above `first`, ascending.
  static func list(_ numbers: [UInt32], above first: UInt32) -> [UInt8] {
    var page = LittleEndianPage(4096)
    for (index, number) in numbers.sorted().filter({ $0 > first }).prefix(1024).enumerated() {
      page.set(number, at: 4 * index)
    }
    return page.bytes
  }

  /// One way to a subsystem.
  struct DiscoveryEntry: Hashable, Sendable {
    var subsystemNQN: String
    var isDiscovery: Bool
    var address: String
    var port: UInt16
    var isIPv6: Bool
    var portID: UInt16
  }

  static func discoveryLog(_ entries: [DiscoveryEntry], generation: UInt64) -> [UInt8] {
    var page = LittleEndianPage(1024 * (1 + entries.count))
    page.set(generation, at: 0)
    page.set(UInt64(entries.count), at: 8)
    for (index, entry) in entries.enumerated() {
      let base = 1024 * (index + 1)
      page.set(UInt8(3), at: base)  // TCP
      page.set(UInt8(entry.isIPv6 ? 2 : 1), at: base + 1)
      page.set(UInt8(entry.isDiscovery ? 3 : 2), at: base + 2)
      page.set(entry.portID, at: base + 4)
      page.set(UInt16(0xFFFF), at: base + 6)
      page.set(UInt16(128), at: base + 8)
      page.set("\(entry.port)", at: base + 32, width: 32, filler: 0x20)
      page.set(entry.subsystemNQN, at: base + 256, width: 256, filler: 0)
      page.set(entry.address, at: base + 512, width: 256, filler: 0x20)
    }
    return page.bytes
  }
}
