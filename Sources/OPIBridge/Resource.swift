package import GRPCCore
import JSON
package import OPI
package import SwiftProtobuf

/// One kind of resource: what a good one is, and how it is made, removed and read back at the target.
///
/// `make` brings the target to what the resource says, whatever is there before; it is what creating, updating and
/// repairing have in common. Every method may be repeated.
package protocol Resource: SwiftProtobuf.Message, Equatable {
  static var collection: ResourceCollection { get }
  /// The order in which a target that lost everything is repaired: what others stand on comes first.
  static var rank: Int { get }

  var name: String { get set }
  /// Refuses what cannot be, brings texts into one form, and clears what is only read back.
  mutating func normalize() throws(RPCError)
  /// Makes those fields that an update may change what they are in `old`.
  mutating func takeMutableFields(from old: Self)
  /// Takes a key out, which must not be written with the rest or be shown.
  mutating func takeSecret() -> [UInt8]

  /// The names of what this rests on: resources, or block devices of the target.
  var references: [String] { get }
  /// The block device that this resource is at the target.
  var ownBdev: String? { get }

  /// The resource with what the target shows of it; nil where the target does not have it.
  func read(_ scope: Scope) async throws -> Self?
  /// Whether the target has it at all; a difference in its parameters is for `make` to find.
  func isThere(_ scope: Scope) async throws -> Bool
  func make(_ scope: Scope, secret: [UInt8]) async throws
  func remove(_ scope: Scope) async throws
  func statistics(_ scope: Scope) async throws -> OPIVolumeStats
  /// Resources of this kind that the target has and nobody made through the bridge.
  static func strangers(_ scope: Scope) async throws -> [Self]
}

extension Resource {
  package mutating func takeMutableFields(from old: Self) {}
  package mutating func takeSecret() -> [UInt8] { [] }
  package var references: [String] { [] }
  package var ownBdev: String? { nil }
  package static func strangers(_ scope: Scope) async throws -> [Self] { [] }
  package func isThere(_ scope: Scope) async throws -> Bool { try await read(scope) != nil }

  package func statistics(_ scope: Scope) async throws -> OPIVolumeStats {
    guard let bdev = ownBdev else { throw RPCError.unsupported(name, "the target keeps no statistics of it") }
    return try await scope.statistics(bdevs: [bdev])
  }
}

/// What a kind of resource works with during one call.
package struct Scope: Sendable {
  package let target: Target
  package let view: TargetView
  /// What is recorded, by name.
  package let records: [String: Record]

  /// The target's name of the block device behind a `volume_name_ref`: a resource's name, or the target's own name.
  func bdevName(_ reference: String, field: String = "volume_name_ref") throws(RPCError) -> String {
    guard !reference.isEmpty else { throw .missing(field) }
    guard reference.utf8.count <= 512, !reference.utf8.contains(0) else {
      throw .invalid(field, reference, "is longer than 512 bytes, or has a zero in it")
    }
    let parts = reference.split(separator: "/", omittingEmptySubsequences: false).map(String.init)
    switch (parts.count, parts[0]) {
    case (2, OPIQosVolume.collection.segment):
      guard let limited = records[reference]?.message as? OPIQosVolume else { throw .notFound(reference) }
      return try bdevName(limited.volumeNameRef)
    case (2, let segment) where Self.bdevCollections.contains(segment): return parts[1]
    case (4, YCStoreName.segment) where parts[2] == YCVolume.collection.segment: return "\(parts[1])/\(parts[3])"
    case (4, OPINvmeRemoteController.collection.segment): return parts[3]
    default: return reference
    }
  }

  private static let bdevCollections: Set<String> = [
    OPIAioVolume.collection.segment, OPINullVolume.collection.segment, OPIMallocVolume.collection.segment,
    OPIEncryptedVolume.collection.segment, YCVolume.collection.segment,
  ]

  /// The block device behind a reference. Throws `notFound` where there is none.
  func bdev(_ reference: String) async throws -> Bdev {
    guard let bdev = try await view.bdev(bdevName(reference)) else { throw RPCError.notFound(reference) }
    return bdev
  }

  func call(_ method: String, _ parameters: JSONValue, for operation: String) async throws {
    do {
      try await target.call(method, parameters, for: operation)
    } catch let error as TargetError {
      if error.isOpen { await view.noteChange() }
      throw error
    }
    await view.noteChange()
  }

  /// - Parameter other: what releases take that do not know `parameters`.
  func call(
    _ method: String, _ parameters: JSONValue, for operation: String, orWith other: JSONValue
  ) async throws {
    do {
      try await call(method, parameters, for: operation)
    } catch let error as TargetError where error.isUndecoded {
      try await call(method, other, for: operation)
    }
  }

  /// The sum over block devices. OPI's counters have 32 bits: they stay at their largest value.
  func statistics(bdevs names: [String]) async throws -> OPIVolumeStats {
    var entries: [JSONValue] = []
    for name in names {
      let answer = try await target.call(
        "bdev_get_iostat", ["name": .string(name)], for: "read the statistics of \(name)")
      entries += answer["bdevs"]?.arrayValue ?? []
    }
    return Scope.sum(entries)
  }

  /// The sum over block devices of what was done over one path, the one that `isMeant` knows by its identifier.
  func statistics(bdevs names: [String], path isMeant: (JSONValue) -> Bool) async throws -> OPIVolumeStats {
    var entries: [JSONValue] = []
    for name in names {
      let answer = try await target.call(
        "bdev_nvme_get_path_iostat", ["name": .string(name)], for: "read the statistics of the paths of \(name)")
      for path in answer["stats"]?.arrayValue ?? [] {
        if let identifier = path["trid"], isMeant(identifier), let entry = path["stat"] { entries.append(entry) }
      }
    }
    return Scope.sum(entries)
  }

  private static func sum(_ entries: [JSONValue]) -> OPIVolumeStats {
    var sum = [Int64](repeating: 0, count: 9)
    for entry in entries {
      for (index, member) in counters.enumerated() {
        let (value, overflow) = sum[index].addingReportingOverflow(max(0, entry[member]?.int64Value ?? 0))
        sum[index] = overflow ? .max : value
      }
    }
    let narrow = sum.map { Int32(clamping: $0) }
    return OPIVolumeStats.with {
      $0.readBytesCount = narrow[0]
      $0.readOpsCount = narrow[1]
      $0.writeBytesCount = narrow[2]
      $0.writeOpsCount = narrow[3]
      $0.unmapBytesCount = narrow[4]
      $0.unmapOpsCount = narrow[5]
      $0.readLatencyTicks = narrow[6]
      $0.writeLatencyTicks = narrow[7]
      $0.unmapLatencyTicks = narrow[8]
    }
  }

  private static let counters = [
    "bytes_read", "num_read_ops", "bytes_written", "num_write_ops", "bytes_unmapped", "num_unmap_ops",
    "read_latency_ticks", "write_latency_ticks", "unmap_latency_ticks",
  ]
}
