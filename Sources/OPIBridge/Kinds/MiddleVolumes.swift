import FoundationEssentials
package import GRPCCore
import JSON
package import OPI

extension OPIQosLimit {
  /// Refuses limits that SPDK cannot keep. The parameters of `bdev_set_qos_limit`; zero lifts a limit.
  ///
  /// - Parameter field: where the limit stands, for errors.
  func parameters(_ field: String) throws(RPCError) -> [String: JSONValue] {
    for (name, value) in [
      ("rd_iops_kiops", rdIopsKiops), ("wr_iops_kiops", wrIopsKiops), ("rw_iops_kiops", rwIopsKiops),
      ("rd_bandwidth_mbs", rdBandwidthMbs), ("wr_bandwidth_mbs", wrBandwidthMbs), ("rw_bandwidth_mbs", rwBandwidthMbs),
    ] where !(0...4_000_000).contains(value) {
      throw .invalid("\(field).\(name)", "\(value)", "is not between 0 and 4000000")
    }
    guard rdIopsKiops == 0, wrIopsKiops == 0 else {
      throw .unsupported(
        "\(field).\(rdIopsKiops != 0 ? "rd_iops_kiops" : "wr_iops_kiops")",
        "SPDK limits operations only in both directions together; use rw_iops_kiops")
    }
    return [
      "rw_ios_per_sec": .integer(rwIopsKiops * 1000), "rw_mbytes_per_sec": .integer(rwBandwidthMbs),
      "r_mbytes_per_sec": .integer(rdBandwidthMbs), "w_mbytes_per_sec": .integer(wrBandwidthMbs),
    ]
  }

  /// SPDK guarantees nothing, so a lower limit that is not zero is refused.
  func checkAbsent(_ field: String) throws(RPCError) {
    guard self == OPIQosLimit() else { throw .unsupported(field, "the target guarantees no least speed") }
  }

  var isNone: Bool { self == OPIQosLimit() }

  /// The limits of a block device, as the target shows them.
  init(assigned bdev: Bdev) {
    self.init()
    let limits = bdev.json["assigned_rate_limits"]
    rwIopsKiops = (limits?["rw_ios_per_sec"]?.int64Value ?? 0) / 1000
    rwBandwidthMbs = limits?["rw_mbytes_per_sec"]?.int64Value ?? 0
    rdBandwidthMbs = limits?["r_mbytes_per_sec"]?.int64Value ?? 0
    wrBandwidthMbs = limits?["w_mbytes_per_sec"]?.int64Value ?? 0
  }

  /// Sets the limits of a block device where they are others.
  func assign(to bdev: Bdev, _ scope: Scope, field: String) async throws {
    guard OPIQosLimit(assigned: bdev) != self else { return }
    var parameters = try self.parameters(field)
    parameters["name"] = .string(bdev.name)
    try await scope.call("bdev_set_qos_limit", .object(parameters), for: "limit \(bdev.name)")
  }
}

extension OPIQosVolume: Resource {
  package static let collection = ResourceCollection("qosVolumes")
  package static let rank = 60
  package var references: [String] { [volumeNameRef] }

  package mutating func normalize() throws(RPCError) {
    guard !volumeNameRef.isEmpty else { throw .missing("volume_name_ref") }
    guard !OPIQosVolume.collection.contains(volumeNameRef) else {
      throw .invalid("volume_name_ref", volumeNameRef, "has limits itself; name the volume below it")
    }
    guard hasLimits, limits.hasMax, !limits.max.isNone else { throw .missing("limits.max") }
    try limits.min.checkAbsent("limits.min")
    limits.clearMin()
    _ = try limits.max.parameters("limits.max")
  }

  package mutating func takeMutableFields(from old: OPIQosVolume) { limits = old.limits }

  package func read(_ scope: Scope) async throws -> OPIQosVolume? {
    guard let bdev = try await scope.view.bdev(scope.bdevName(volumeNameRef)) else { return nil }
    let assigned = OPIQosLimit(assigned: bdev)
    guard !assigned.isNone else { return nil }
    var shown = self
    shown.limits.max = assigned
    return shown
  }

  package func make(_ scope: Scope, secret: [UInt8]) async throws {
    let target = try scope.bdevName(volumeNameRef)
    for record in scope.records.values where record.name != name && record.phase == .present {
      if let other = record.message as? OPIQosVolume, try scope.bdevName(other.volumeNameRef) == target {
        throw RPCError.precondition(name, "\(other.name) limits \(volumeNameRef) already; update that")
      }
      if let disk = record.message as? OPIVirtioBlk, disk.hasMaxLimit, try scope.bdevName(disk.volumeNameRef) == target
      {
        throw RPCError.precondition(name, "\(disk.name) limits \(volumeNameRef) already, by its max_limit")
      }
    }
    try await limits.max.assign(to: scope.bdev(volumeNameRef), scope, field: "limits.max")
  }

  package func remove(_ scope: Scope) async throws {
    guard let bdev = try await scope.view.bdev(scope.bdevName(volumeNameRef)) else { return }
    try await OPIQosLimit().assign(to: bdev, scope, field: "limits.max")
  }

  package func statistics(_ scope: Scope) async throws -> OPIVolumeStats {
    try await scope.statistics(bdevs: [scope.bdevName(volumeNameRef)])
  }
}

extension OPIEncryptedVolume: Resource {
  package static let collection = ResourceCollection("encryptedVolumes")
  package static let rank = 20
  package var references: [String] { [volumeNameRef] }
  package var ownBdev: String? { ResourceName.id(of: name) }

  package mutating func takeSecret() -> [UInt8] {
    defer { key = .init() }
    return Array(key)
  }

  package mutating func normalize() throws(RPCError) {
    guard !volumeNameRef.isEmpty else { throw .missing("volume_name_ref") }
    guard cipher == .aesXts128 || cipher == .aesXts256 else {
      throw .invalid("cipher", "\(cipher)", "is not offered; use ENCRYPTION_TYPE_AES_XTS_128 or ..._256")
    }
  }

  private var id: String { ResourceName.id(of: name) }
  private var keyName: String { "opi-\(id)" }

  package func read(_ scope: Scope) async throws -> OPIEncryptedVolume? {
    guard let bdev = try await scope.view.bdev(id), bdev.specifics("crypto") != nil else { return nil }
    return self
  }

  package func make(_ scope: Scope, secret: [UInt8]) async throws {
    // XTS has two keys of the cipher's length, one after the other.
    let length = cipher == .aesXts128 ? 16 : 32
    guard secret.count == 2 * length else {
      throw RPCError(
        code: .invalidArgument, message: "key has \(secret.count) bytes; AES-XTS-\(length * 8) takes \(2 * length)")
    }
    let below = try await scope.bdev(volumeNameRef)
    if let bdev = try await scope.view.bdev(id) {
      guard let crypto = bdev.specifics("crypto"), crypto["key_name"]?.stringValue == keyName,
        crypto["base_bdev_name"]?.stringValue.map(below.isCalled) ?? false
      else { throw BlockVolumes.conflict(name, bdev, "already") }
      return
    }
    do {
      try await createKey(scope, secret, length)
    } catch let error as TargetError where error.isPresent {
      // Left from an attempt that was cut off. Whether it is the same key cannot be seen, so it is made anew.
      try await destroyKey(scope)
      try await createKey(scope, secret, length)
    }
    do {
      try await scope.call(
        "bdev_crypto_create",
        ["name": .string(id), "base_bdev_name": .string(below.name), "key_name": .string(keyName)],
        for: "encrypt \(volumeNameRef) as \(id)")
    } catch {
      try? await destroyKey(scope)
      throw error
    }
  }

  package func remove(_ scope: Scope) async throws {
    if let bdev = try await scope.view.bdev(id), bdev.specifics("crypto") != nil {
      try await BlockVolumes.delete(id, with: "bdev_crypto_delete", scope)
    }
    try await destroyKey(scope)
  }

  private func createKey(_ scope: Scope, _ secret: [UInt8], _ length: Int) async throws {
    try await scope.call(
      "accel_crypto_key_create",
      [
        "name": .string(keyName), "cipher": "AES_XTS", "key": .string(Self.hex(secret[..<length])),
        "key2": .string(Self.hex(secret[length...])),
      ], for: "hand over the key of \(id)")
  }

  private func destroyKey(_ scope: Scope) async throws {
    do {
      try await scope.call(
        "accel_crypto_key_destroy", ["key_name": .string(keyName)], for: "destroy the key of \(id)")
    } catch let error as TargetError where error.isAbsent || error.serverCode == -32602 || error.serverCode == -22 {
      // Releases differ in how they say that there is no such key.
    }
  }

  private static func hex(_ bytes: ArraySlice<UInt8>) -> String {
    bytes.map { ($0 < 16 ? "0" : "") + String($0, radix: 16) }.joined()
  }
}
