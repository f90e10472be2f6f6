/// What the first bytes of a file say about a disk image.
///
/// The file may come from anywhere. Its format is read here, from its first bytes, and never left to a guess of
/// qemu-img: a raw disk whose first sector a guest has overwritten could else pass for a format that names other files.
package enum DiskImage: Sendable, Hashable {
  case raw
  case qcow2(QCOW2Header)

  /// How many bytes ``inspect(_:)`` wants.
  package static let inspectedBytes = 512

  package struct Refusal: Error, Sendable, Hashable, CustomStringConvertible {
    package let message: String
    package let remedy: String?

    package init(_ message: String, remedy: String? = nil) {
      self.message = message
      self.remedy = remedy
    }

    package var description: String { message }
  }

  /// - Parameter head: The first bytes of the file, ``inspectedBytes`` where it has so many.
  package static func inspect(_ head: [UInt8]) throws(Refusal) -> DiskImage {
    if head.starts(with: QCOW2Header.magic) { return .qcow2(try QCOW2Header(head)) }
    for (magic, format, remedy) in foreign where head.starts(with: magic) {
      throw Refusal("the file is \(format), not a qcow2 or raw disk image", remedy: remedy)
    }
    return .raw
  }

  private static let foreign: [([UInt8], String, String)] = [
    ([0x1F, 0x8B], "compressed with gzip", "Unpack it first: gunzip FILE"),
    ([0xFD, 0x37, 0x7A, 0x58, 0x5A, 0x00], "compressed with xz", "Unpack it first: unxz FILE"),
    ([0x28, 0xB5, 0x2F, 0xFD], "compressed with zstd", "Unpack it first: unzstd FILE"),
    ([0x42, 0x5A, 0x68], "compressed with bzip2", "Unpack it first: bunzip2 FILE"),
    ([0x50, 0x4B, 0x03, 0x04], "a zip archive", "Unpack it first: unzip FILE"),
    (Array("KDMV".utf8), "a VMDK image", "Convert it first: qemu-img convert -f vmdk -O qcow2 FILE NEW"),
    (Array("# Disk DescriptorFile".utf8), "a VMDK descriptor", "Convert it first: qemu-img convert -O qcow2 FILE NEW"),
    (Array("vhdxfile".utf8), "a VHDX image", "Convert it first: qemu-img convert -f vhdx -O qcow2 FILE NEW"),
    (Array("conectix".utf8), "a VHD image", "Convert it first: qemu-img convert -f vpc -O qcow2 FILE NEW"),
    ([0x51, 0x46, 0x49, 0x00], "an old qcow image", "Convert it first: qemu-img convert -f qcow -O qcow2 FILE NEW"),
    (Array("LUKS".utf8) + [0xBA, 0xBE], "a LUKS volume", "Import a disk that a server can boot from."),
  ]
}

/// The head of a qcow2 file (QEMU's docs/interop/qcow2.txt).
package struct QCOW2Header: Sendable, Hashable {
  package static let magic: [UInt8] = [0x51, 0x46, 0x49, 0xFB]
  /// Bytes of the disk at most: more is a mistake, or an attack.
  package static let virtualSizeMax: UInt64 = 64 << 40

  /// Bytes of the disk.
  package let virtualSize: Int64

  /// - Throws: Where the image would need other files, is encrypted, damaged, or of a size that cannot be.
  package init(_ head: [UInt8]) throws(DiskImage.Refusal) {
    guard head.count >= 72, head.starts(with: Self.magic) else {
      throw DiskImage.Refusal("the qcow2 file ends inside its header")
    }
    func integer(_ offset: Int, _ width: Int) -> UInt64 {
      head[offset..<offset + width].reduce(0) { $0 << 8 | UInt64($1) }
    }
    let version = integer(4, 4)
    guard version == 2 || version == 3 else {
      throw DiskImage.Refusal("qcow2 version \(version) is not known (2 and 3 are)")
    }
    // A backing file is any file that qemu-img may read: /etc/shadow too.
    guard integer(8, 8) == 0 else {
      throw DiskImage.Refusal(
        "the qcow2 image has a backing file; an image must stand alone",
        remedy: "Make it stand alone first: qemu-img convert -O qcow2 FILE NEW")
    }
    guard integer(32, 4) == 0 else { throw DiskImage.Refusal("the qcow2 image is encrypted") }
    let clusterBits = integer(20, 4)
    guard (9...21).contains(clusterBits) else {
      throw DiskImage.Refusal("the qcow2 image has clusters of 2^\(clusterBits) bytes (2^9 to 2^21 are allowed)")
    }
    if version == 3 {
      guard head.count >= 104 else { throw DiskImage.Refusal("the qcow2 file ends inside its header") }
      let features = integer(72, 8)
      guard features & 1 << 1 == 0 else {
        throw DiskImage.Refusal("the qcow2 image says that it is corrupt", remedy: "Try: qemu-img check -r all FILE")
      }
      guard features & 1 << 2 == 0 else {
        throw DiskImage.Refusal(
          "the qcow2 image keeps its data in another file; an image must stand alone",
          remedy: "Make it stand alone first: qemu-img convert -O qcow2 FILE NEW")
      }
      // Dirty (0), compression type (3) and extended L2 entries (4) are harmless.
      guard features & ~0b11001 == 0 else {
        throw DiskImage.Refusal("the qcow2 image needs features that are not known (\(String(features, radix: 16)))")
      }
    }
    let size = integer(24, 8)
    guard size > 0 else { throw DiskImage.Refusal("the disk in the qcow2 image is empty") }
    guard size <= Self.virtualSizeMax else {
      throw DiskImage.Refusal("the disk in the qcow2 image has \(size) bytes; \(Self.virtualSizeMax) are the limit")
    }
    virtualSize = Int64(size)
  }
}

/// Sizes of volumes.
package enum VolumeSize {
  package static let mebibyte: Int64 = 1 << 20

  /// A disk's size as a volume's: whole MiB.
  package static func roundedUp(_ bytes: Int64) -> Int64 {
    let whole = bytes / mebibyte * mebibyte
    return whole == bytes ? whole : whole + mebibyte
  }
}
