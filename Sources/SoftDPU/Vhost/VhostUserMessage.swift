/// The numbers of the vhost-user protocol (QEMU, docs/interop/vhost-user.rst), as far as a block device needs them.
package enum VhostUser {
  package enum Request: UInt32, Sendable {
    case getFeatures = 1
    case setFeatures = 2
    case setOwner = 3
    case resetOwner = 4
    case setMemTable = 5
    case setVringNum = 8
    case setVringAddr = 9
    case setVringBase = 10
    case getVringBase = 11
    case setVringKick = 12
    case setVringCall = 13
    case setVringErr = 14
    case getProtocolFeatures = 15
    case setProtocolFeatures = 16
    case getQueueNum = 17
    case setVringEnable = 18
    case setBackendReqFD = 21
    case getConfig = 24
    case setConfig = 25
    case getInflightFD = 31
    case setInflightFD = 32
    case getMaxMemSlots = 36
    case addMemReg = 37
    case removeMemReg = 38
  }

  /// A request of the back end, on the channel that SET_BACKEND_REQ_FD gave it.
  package static let backendConfigChange: UInt32 = 2

  package enum ProtocolFeature {
    package static let multiqueue: UInt64 = 1 << 0
    package static let replyAck: UInt64 = 1 << 3
    package static let backendChannel: UInt64 = 1 << 5
    package static let config: UInt64 = 1 << 9
    package static let inflight: UInt64 = 1 << 12
    package static let memorySlots: UInt64 = 1 << 15
  }

  /// The feature bit that says that protocol features exist.
  package static let protocolFeaturesBit: UInt64 = 1 << 30

  package static let headerLength = 12
  /// The longest payload that is accepted; the longest legal one here is a configuration space.
  package static let maximumPayload = 1024
  /// How many descriptors one message may bring: one for each region of a memory table.
  package static let maximumDescriptors = 8
  /// How many queues a device has at most.
  package static let maximumQueues = 64
}

/// The header of a message: request, flags and length of the payload, each 32 bits in the machine's byte order.
package struct VhostUserHeader: Sendable, Hashable {
  private static let version: UInt32 = 1
  private static let replyFlag: UInt32 = 1 << 2
  private static let needReplyFlag: UInt32 = 1 << 3

  package var request: UInt32
  package var isReply: Bool
  package var needsReply: Bool
  package var payloadLength: Int

  package init(request: UInt32, isReply: Bool = false, needsReply: Bool = false, payloadLength: Int) {
    self.request = request
    self.isReply = isReply
    self.needsReply = needsReply
    self.payloadLength = payloadLength
  }

  /// Nil where the bytes are no header of this protocol's version, or announce more than a message may hold.
  package init?(_ bytes: some Collection<UInt8>) {
    var reader = ByteReader(bytes)
    guard let request = reader.u32(), let flags = reader.u32(), let size = reader.u32(),
      flags & 3 == VhostUserHeader.version, size <= UInt32(VhostUser.maximumPayload)
    else { return nil }
    self.init(
      request: request, isReply: flags & VhostUserHeader.replyFlag != 0,
      needsReply: flags & VhostUserHeader.needReplyFlag != 0, payloadLength: Int(size))
  }

  package var bytes: [UInt8] {
    var writer = ByteWriter()
    writer.u32(request)
    writer.u32(
      VhostUserHeader.version | (isReply ? VhostUserHeader.replyFlag : 0)
        | (needsReply ? VhostUserHeader.needReplyFlag : 0))
    writer.u32(UInt32(truncatingIfNeeded: payloadLength))
    return writer.bytes
  }
}

/// Reads integers in the machine's byte order; every read checks what is left.
package struct ByteReader: Sendable {
  private let bytes: [UInt8]
  private var position = 0

  package init(_ bytes: some Collection<UInt8>) { self.bytes = Array(bytes) }

  package var remaining: Int { bytes.count - position }

  private mutating func integer<Value: FixedWidthInteger>(_ type: Value.Type) -> Value? {
    let length = Value.bitWidth / 8
    guard remaining >= length else { return nil }
    var value: Value = 0
    for index in 0..<length { value |= Value(bytes[position + index]) << Value(index * 8) }
    position += length
    return Value(littleEndian: value)
  }

  package mutating func u16() -> UInt16? { integer(UInt16.self) }
  package mutating func u32() -> UInt32? { integer(UInt32.self) }
  package mutating func u64() -> UInt64? { integer(UInt64.self) }

  package mutating func rest() -> [UInt8] {
    defer { position = bytes.count }
    return Array(bytes[position...])
  }
}

/// Writes integers in the byte order of the machines that this runs on: little-endian.
package struct ByteWriter: Sendable {
  package private(set) var bytes: [UInt8] = []

  package init() {}

  private mutating func integer(_ value: some FixedWidthInteger) {
    for index in 0..<(value.bitWidth / 8) { bytes.append(UInt8(truncatingIfNeeded: value >> (index * 8))) }
  }

  package mutating func u8(_ value: UInt8) { bytes.append(value) }
  package mutating func u16(_ value: UInt16) { integer(value) }
  package mutating func u32(_ value: UInt32) { integer(value) }
  package mutating func u64(_ value: UInt64) { integer(value) }
  package mutating func append(_ more: [UInt8]) { bytes += more }
}

/// What the payloads say, by request.
package enum VhostUserPayload {
  /// A memory table: up to eight regions, each with its descriptor.
  package static func memoryTable(_ payload: [UInt8]) -> [RegionDescription]? {
    var reader = ByteReader(payload)
    guard let count = reader.u32(), reader.u32() != nil, count <= UInt32(VhostUser.maximumDescriptors) else {
      return nil
    }
    var regions: [RegionDescription] = []
    for _ in 0..<count {
      guard let region = self.region(&reader) else { return nil }
      regions.append(region)
    }
    return regions
  }

  /// One region, as ADD_MEM_REG and REM_MEM_REG have it.
  package static func singleRegion(_ payload: [UInt8]) -> RegionDescription? {
    var reader = ByteReader(payload)
    guard reader.u64() != nil else { return nil }
    return region(&reader)
  }

  private static func region(_ reader: inout ByteReader) -> RegionDescription? {
    guard let guest = reader.u64(), let length = reader.u64(), let user = reader.u64(), let offset = reader.u64()
    else { return nil }
    let region = RegionDescription(guestStart: guest, length: length, userStart: user, fileOffset: offset)
    return region.isSound ? region : nil
  }

  /// A queue's index and a number.
  package static func state(_ payload: [UInt8]) -> (index: Int, number: UInt32)? {
    var reader = ByteReader(payload)
    guard let index = reader.u32(), let number = reader.u32(), index < UInt32(VhostUser.maximumQueues) else {
      return nil
    }
    return (Int(index), number)
  }

  /// Where a queue's parts are, in the front end's addresses.
  package struct RingAddresses: Sendable, Hashable {
    package var index: Int
    package var descriptors: UInt64
    package var used: UInt64
    package var available: UInt64
  }

  package static func addresses(_ payload: [UInt8]) -> RingAddresses? {
    var reader = ByteReader(payload)
    guard let index = reader.u32(), reader.u32() != nil, let descriptors = reader.u64(), let used = reader.u64(),
      let available = reader.u64(), index < UInt32(VhostUser.maximumQueues)
    else { return nil }
    return RingAddresses(index: Int(index), descriptors: descriptors, used: used, available: available)
  }

  /// A queue's index and whether a descriptor comes with it.
  package static func descriptorIndex(_ payload: [UInt8]) -> (index: Int, hasDescriptor: Bool)? {
    var reader = ByteReader(payload)
    guard let value = reader.u64(), value & 0xFF < UInt64(VhostUser.maximumQueues) else { return nil }
    return (Int(value & 0xFF), value & 0x100 == 0)
  }

  package struct Config: Sendable, Hashable {
    package var offset: UInt32
    package var length: UInt32
    package var flags: UInt32
    package var bytes: [UInt8]
  }

  package static func config(_ payload: [UInt8]) -> Config? {
    var reader = ByteReader(payload)
    guard let offset = reader.u32(), let length = reader.u32(), let flags = reader.u32(), offset <= 256,
      length <= 256, offset + length <= 256
    else { return nil }
    return Config(offset: offset, length: length, flags: flags, bytes: reader.rest())
  }

  package struct Inflight: Sendable, Hashable {
    package var length: UInt64
    package var offset: UInt64
    package var queues: Int
    package var queueSize: UInt16
  }

  package static func inflight(_ payload: [UInt8]) -> Inflight? {
    var reader = ByteReader(payload)
    guard let length = reader.u64(), let offset = reader.u64(), let queues = reader.u16(), let size = reader.u16(),
      queues > 0, Int(queues) <= VhostUser.maximumQueues, size > 0, size <= 1024
    else { return nil }
    return Inflight(length: length, offset: offset, queues: Int(queues), queueSize: size)
  }
}
