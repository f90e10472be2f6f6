/// A file that the DPU offers as a block device to the functions of its server.
public struct BlockVolume: Sendable, Hashable {
  /// The volume's name; a persistent volume's handle.
  public var name: String
  /// The path of the file, as the DPU sees it.
  public var file: String
  /// Size of a logical block in bytes.
  public var blockSize: Int
  /// Size of the volume in blocks.
  public var blockCount: UInt64
  public var readOnly: Bool
  /// The limits in effect; none also where the DPU cannot tell.
  public var limits: VolumeLimits

  public init(
    name: String, file: String, blockSize: Int, blockCount: UInt64, readOnly: Bool, limits: VolumeLimits = .init()
  ) {
    self.name = name
    self.file = file
    self.blockSize = blockSize
    self.blockCount = blockCount
    self.readOnly = readOnly
    self.limits = limits
  }

  /// Size of the volume in bytes.
  public var capacity: UInt64 { blockCount &* UInt64(max(0, blockSize)) }

  /// The serial number that a guest reads from the disk (virtio 1.2, section 5.2.6, VIRTIO_BLK_T_GET_ID): the first 20
  /// bytes of the volume's name.
  public var serial: String { String(decoding: name.utf8.prefix(20), as: UTF8.self) }
}

/// A PCIe function of the server that shows a volume as a disk.
public struct BlockFunction: Sendable, Hashable {
  /// The function's name, which is also the name of its slot on the bus.
  public var name: String
  /// The volume behind it.
  public var volume: String
  public var readOnly: Bool

  public init(name: String, volume: String, readOnly: Bool) {
    self.name = name
    self.volume = volume
    self.readOnly = readOnly
  }
}

/// When a snapshot of several volumes was taken, and what that cost.
public struct GroupSnapshotTimes: Sendable, Hashable {
  /// The moment whose content it is, in microseconds since 1970 by the DPU's clock.
  public var takenAt: Int64
  /// For how long the server's writes were kept back, in microseconds.
  public var pause: Int64

  public init(takenAt: Int64, pause: Int64) {
    self.takenAt = takenAt
    self.pause = pause
  }
}

/// What bare-metal handling needs of a DPU, and all it needs: disks of one server, read back and changed.
///
/// Every change is safe to repeat: what is there already with the same parameters counts as done, and so does the
/// removal of what is absent. What is there with other parameters is an error (`.conflict`). All methods throw
/// `DPUError` or `CancellationError`.
public protocol DPU: Sendable {
  /// The data plane's name and version.
  func version() async throws -> String

  /// The volumes that exist, in the order of their names.
  func volumes() async throws -> [BlockVolume]

  /// The functions that exist, in the order of their names.
  func functions() async throws -> [BlockFunction]

  /// Opens the file at `file` as a volume.
  ///
  /// - Parameter shared: Other DPUs may have the file for writing at the same time, where each says so. Without it, a data
  ///   plane that locks files has it alone.
  func createVolume(name: String, file: String, readOnly: Bool, shared: Bool) async throws

  /// Closes a volume; its file stays. A volume with a function is in use and is refused.
  func deleteVolume(name: String) async throws

  /// Sets what the volume may do at most, also while the server uses it. Limits that are none lift all of them.
  func limitVolume(name: String, _ limits: VolumeLimits) async throws

  /// Keeps what volumes hold at one moment, as files in a folder that is made for it: `.unsupported` where the data plane
  /// cannot, `.conflict` where the folder is there already.
  ///
  /// - Parameters:
  ///   - folder: An absolute path, as the DPU sees it.
  ///   - files: The name of each volume's file in the folder, by the volume's name.
  func snapshot(into folder: String, files: [String: String]) async throws -> GroupSnapshotTimes

  /// Takes notice of a file that has grown, and tells the server.
  func rescanVolume(name: String) async throws

  /// Shows a volume to the server as a disk.
  func plug(function: String, volume: String, readOnly: Bool) async throws

  /// Takes a disk away from the server. When this returns, the server can reach the volume no more.
  ///
  /// A server that runs is asked first: until its operating system lets go, the error is `.busy`, the function stays
  /// listed, and the server is asked on.
  /// - Parameter force: Cuts the server off from the volume at once, whether it lets go or not. Requests that it made
  ///   before are carried out or fail first.
  func unplug(function: String, force: Bool) async throws
}

extension DPU {
  /// Opens a file that this DPU alone writes to.
  public func createVolume(name: String, file: String, readOnly: Bool) async throws {
    try await createVolume(name: name, file: file, readOnly: readOnly, shared: false)
  }

  /// Takes a disk away with the server's consent.
  public func unplug(function: String) async throws { try await unplug(function: function, force: false) }
}
