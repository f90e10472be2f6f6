import CLinux

/// What a driver reads from the device: features and configuration space (virtio 1.2, sections 5.2.3 and 5.2.4).
package struct BlockConfiguration: Sendable, Hashable {
  /// Size of the disk in bytes.
  package var capacity: UInt64
  /// Size of a logical block in bytes.
  package var blockSize: UInt32
  /// What the file works in, in bytes; a power of two, at least `blockSize`.
  package var physicalBlockSize: UInt32
  package var isReadOnly: Bool
  package var canUnmap: Bool
  package var canWriteZeroes: Bool
  package var queueCount: UInt16

  package init(
    capacity: UInt64, blockSize: UInt32, physicalBlockSize: UInt32, isReadOnly: Bool, canUnmap: Bool,
    canWriteZeroes: Bool, queueCount: UInt16
  ) {
    self.capacity = capacity
    self.blockSize = blockSize
    self.physicalBlockSize = physicalBlockSize
    self.isReadOnly = isReadOnly
    self.canUnmap = canUnmap
    self.canWriteZeroes = canWriteZeroes
    self.queueCount = queueCount
  }

  /// Feature bits of the block device, of the rings, and of vhost-user.
  package var features: UInt64 {
    var bits: [Int32] = [
      VIRTIO_BLK_F_SIZE_MAX, VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_TOPOLOGY,
      VIRTIO_BLK_F_MQ, VIRTIO_RING_F_INDIRECT_DESC, VIRTIO_RING_F_EVENT_IDX, VIRTIO_F_VERSION_1,
    ]
    if isReadOnly { bits.append(VIRTIO_BLK_F_RO) }
    if canUnmap && !isReadOnly { bits.append(VIRTIO_BLK_F_DISCARD) }
    if canWriteZeroes && !isReadOnly { bits.append(VIRTIO_BLK_F_WRITE_ZEROES) }
    return bits.reduce(VhostUser.protocolFeaturesBit) { $0 | 1 << UInt64($1) }
  }

  /// The configuration space; what lies behind the fields of this device is zero.
  package var bytes: [UInt8] {
    var writer = ByteWriter()
    writer.u64(capacity / 512)
    writer.u32(BlockConfiguration.maximumSegmentLength)
    writer.u32(BlockConfiguration.maximumSegments)
    writer.u32(0)  // geometry: none
    writer.u32(blockSize)
    // Topology: the exponent of physical over logical block, no offset; the best size of a request.
    writer.u8(UInt8((physicalBlockSize / blockSize).trailingZeroBitCount))
    writer.u8(0)
    writer.u16(1)
    writer.u32(max(1, physicalBlockSize / blockSize))
    writer.u8(1)  // write-back; cannot be changed, as CONFIG_WCE is not offered
    writer.u8(0)
    writer.u16(queueCount)
    let alignment = max(1, physicalBlockSize / 512)
    writer.u32(canUnmap ? Segment.maximumSectors : 0)
    writer.u32(canUnmap ? UInt32(Segment.maximumCount) : 0)
    writer.u32(canUnmap ? alignment : 0)
    writer.u32(canWriteZeroes ? Segment.maximumSectors : 0)
    writer.u32(canWriteZeroes ? UInt32(Segment.maximumCount) : 0)
    writer.u8(canUnmap ? 1 : 0)  // write-zeroes may give the space back
    return writer.bytes + [UInt8](repeating: 0, count: 256 - writer.bytes.count)
  }

  package static let maximumSegments: UInt32 = 126
  /// 1 MiB: with 126 segments no request is longer than 126 MiB.
  package static let maximumSegmentLength: UInt32 = 1 << 20
  /// What follows from the two: a driver that goes beyond it would hold up its neighbours.
  static let maximumRequestLength = UInt64(maximumSegments) * UInt64(maximumSegmentLength)
}
