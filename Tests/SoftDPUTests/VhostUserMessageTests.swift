import SoftDPU
import TestSupport
import Testing

/// The wire format, against bytes written down from QEMU's documentation (docs/interop/vhost-user.rst).
@Suite struct VhostUserMessageTests {
  @Test func readsAndWritesHeaders() {
    // GET_VRING_BASE, version 1, eight bytes of payload.
    let request: [UInt8] = [11, 0, 0, 0, 1, 0, 0, 0, 8, 0, 0, 0]
    #expect(VhostUserHeader(request) == VhostUserHeader(request: 11, payloadLength: 8))
    let acknowledged: [UInt8] = [5, 0, 0, 0, 9, 0, 0, 0, 40, 0, 0, 0]
    #expect(VhostUserHeader(acknowledged) == VhostUserHeader(request: 5, needsReply: true, payloadLength: 40))
    #expect(VhostUserHeader(request: 1, isReply: true, payloadLength: 8).bytes == [1, 0, 0, 0, 5, 0, 0, 0, 8, 0, 0, 0])
  }

  @Test(
    arguments: [
      [1, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0],  // version 0
      [1, 0, 0, 0, 2, 0, 0, 0, 8, 0, 0, 0],  // version 2
      [1, 0, 0, 0, 1, 0, 0, 0, 1, 4, 0, 0],  // 1025 bytes
      [1, 0, 0, 0, 1, 0, 0, 0, 255, 255, 255, 255],
      [1, 0, 0, 0, 1, 0, 0],
    ] as [[UInt8]])
  func refusesHeaders(bytes: [UInt8]) {
    #expect(VhostUserHeader(bytes) == nil)
  }

  private func words(_ values: UInt64...) -> [UInt8] {
    values.flatMap { value in (0..<8).map { UInt8(truncatingIfNeeded: value >> ($0 * 8)) } }
  }

  @Test func readsMemoryTables() {
    let region = words(0x1_0000_0000, 0x4000_0000, 0x7F00_0000_0000, 0x1000)
    let expected = RegionDescription(
      guestStart: 0x1_0000_0000, length: 0x4000_0000, userStart: 0x7F00_0000_0000, fileOffset: 0x1000)
    #expect(VhostUserPayload.memoryTable(words(2) + region + region) == [expected, expected])
    #expect(VhostUserPayload.singleRegion(words(0) + region) == expected)
    #expect(VhostUserPayload.memoryTable(words(2) + region) == nil)
    #expect(VhostUserPayload.memoryTable(words(9) + (0..<9).flatMap { _ in region }) == nil)
    #expect(VhostUserPayload.memoryTable(words(1) + words(.max, 2, 0, 0)) == nil)
    #expect(VhostUserPayload.memoryTable(words(1) + words(0, 0, 0, 0)) == nil)
    #expect(VhostUserPayload.memoryTable(words(1) + words(0, 1, 0, .max)) == nil)
  }

  @Test func readsRingsAndDescriptors() {
    #expect(VhostUserPayload.state(words(0x80_0000_0003)).map { [$0.index, Int($0.number)] } == [3, 128])
    #expect(VhostUserPayload.state(words(64)) == nil)
    let addresses = VhostUserPayload.addresses(words(1, 0x1000, 0x3000, 0x2000, 0))
    #expect(addresses?.index == 1 && addresses?.descriptors == 0x1000)
    #expect(addresses?.used == 0x3000 && addresses?.available == 0x2000)
    let bell = VhostUserPayload.descriptorIndex(words(2))
    #expect(bell?.index == 2 && bell?.hasDescriptor == true)
    #expect(VhostUserPayload.descriptorIndex(words(0x102))?.hasDescriptor == false)
    #expect(VhostUserPayload.descriptorIndex(words(64)) == nil)
  }

  @Test func readsConfigurationAndRecords() {
    let config = VhostUserPayload.config(words(0x3C_0000_0000) + [0, 0, 0, 0] + [1, 2])
    #expect(config?.offset == 0 && config?.length == 60 && config?.bytes == [1, 2])
    #expect(VhostUserPayload.config(words(0x1_0000_0100) + [0, 0, 0, 0]) == nil)
    let inflight = VhostUserPayload.inflight(words(4160, 0) + [2, 0, 128, 0, 0, 0, 0, 0])
    #expect(inflight?.length == 4160 && inflight?.queues == 2 && inflight?.queueSize == 128)
    #expect(VhostUserPayload.inflight(words(4160, 0) + [0, 0, 128, 0]) == nil)
  }

  @Test func survivesRandomBytes() {
    var generator = SeededGenerator(seed: 8)
    for _ in 0..<5000 {
      let bytes = generator.bytes(Int.random(in: 0...320, using: &generator))
      if let header = VhostUserHeader(bytes) { #expect(header.payloadLength <= VhostUser.maximumPayload) }
      for region in VhostUserPayload.memoryTable(bytes) ?? [] { #expect(region.isSound) }
      if let config = VhostUserPayload.config(bytes) { #expect(config.offset + config.length <= 256) }
      _ = VhostUserPayload.singleRegion(bytes)
      _ = VhostUserPayload.addresses(bytes)
      _ = VhostUserPayload.inflight(bytes)
    }
  }
}

@Suite struct BlockConfigurationTests {
  /// struct virtio_blk_config of virtio 1.2, section 5.2.4.
  @Test func standsWhereTheDriverLooks() {
    let bytes = BlockConfiguration(
      capacity: 1 << 30, blockSize: 512, physicalBlockSize: 4096, isReadOnly: false, canUnmap: true,
      canWriteZeroes: true, queueCount: 64
    ).bytes
    #expect(bytes.count == 256)
    #expect(Array(bytes[0..<8]) == [0, 0, 32, 0, 0, 0, 0, 0])
    #expect(Array(bytes[20..<24]) == [0, 2, 0, 0])
    #expect(bytes[24] == 3 && bytes[25] == 0 && bytes[28] == 8)
    #expect(bytes[32] == 1 && Array(bytes[34..<36]) == [64, 0])
    #expect(Array(bytes[36..<40]) == [0, 0, 64, 0] && Array(bytes[40..<44]) == [16, 0, 0, 0])
    #expect(bytes[56] == 1)
  }

  @Test func offersWhatTheVolumeCanDo() {
    var configuration = BlockConfiguration(
      capacity: 512, blockSize: 512, physicalBlockSize: 512, isReadOnly: true, canUnmap: true, canWriteZeroes: true,
      queueCount: 1)
    #expect(configuration.features & (1 << 5) != 0)
    #expect(configuration.features & (1 << 13 | 1 << 14) == 0)
    configuration.isReadOnly = false
    #expect(configuration.features & (1 << 13 | 1 << 14) == 1 << 13 | 1 << 14)
    configuration.canUnmap = false
    let (readOnly, discard, writeZeroes): (UInt64, UInt64, UInt64) = (1 << 5, 1 << 13, 1 << 14)
    #expect(configuration.features & (discard | writeZeroes) == writeZeroes)
    configuration.canWriteZeroes = false
    #expect(configuration.features & (readOnly | discard | writeZeroes) == 0)
  }
}
