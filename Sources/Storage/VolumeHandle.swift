public import IaaS

/// The name by which a back end knows a volume: 1 to 128 of `a-z`, `0-9` and `-`.
///
/// It becomes part of a file's name, so nothing that a path could be built of gets through.
public struct VolumeHandle: Sendable, Hashable, Comparable, CustomStringConvertible {
  public let name: String

  /// - Throws: ``StorageError/Code/invalidHandle``.
  public init(_ name: String) throws(StorageError) {
    guard VolumeHandle.isPlain(name) else {
      throw StorageError(
        .invalidHandle, operation: "handle",
        message: "'\(name.prefix(140))' is not a volume handle: it takes 1 to 128 of a-z, 0-9 and '-'")
    }
    self.name = name
  }

  /// The handle of the volume that is provisioned for a claim.
  public init(claimUID: String, sharing: VolumeSharing = .exclusive) throws(StorageError) {
    try self.init(sharing.handle(claimUID: claimUID))
  }

  /// The UID of the claim that a volume with this handle is provisioned for; nil for handles of others' making.
  var claimUID: String? { VolumeSharing.claimUID(ofHandle: name) }
  var sharing: VolumeSharing { VolumeSharing(handle: name) }

  static func isPlain(_ name: String) -> Bool {
    (1...128).contains(name.utf8.count) && name.utf8.allSatisfy(isAllowed)
  }

  private static func isAllowed(_ byte: UInt8) -> Bool {
    (UInt8(ascii: "a")...UInt8(ascii: "z")).contains(byte) || (UInt8(ascii: "0")...UInt8(ascii: "9")).contains(byte)
      || byte == UInt8(ascii: "-")
  }

  public static func < (left: VolumeHandle, right: VolumeHandle) -> Bool { left.name < right.name }
  public var description: String { name }
}
