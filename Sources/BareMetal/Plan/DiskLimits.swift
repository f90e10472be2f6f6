package import DPU
package import IaaS
import Kubernetes

/// The limits of a disk: as a spec has them, as an attachment carries them, and as a DPU keeps them.
extension VolumeLimits {
  private static let mebibyte: Int64 = 1 << 20
  /// More than any device has, and what SPDK's and OPI's units can carry.
  private static let most: Int64 = 4_000_000

  /// The limits that a spec asks for; nil where they make no sense, see `problems`.
  package init?(_ limits: BareMetalMachine.DiskLimits?) {
    self.init()
    guard let limits else { return }
    guard VolumeLimits.problems(limits, field: "").isEmpty else { return nil }
    iops = limits.iops ?? 0
    bandwidth = VolumeLimits.mebibytes(limits.bandwidth)
    readBandwidth = VolumeLimits.mebibytes(limits.readBandwidth)
    writeBandwidth = VolumeLimits.mebibytes(limits.writeBandwidth)
  }

  private static func mebibytes(_ text: String?) -> Int64 {
    (text.flatMap { Quantity($0)?.bytes } ?? 0) / mebibyte
  }

  /// What is wrong with limits in a spec.
  /// - Parameter field: Where they stand.
  package static func problems(_ limits: BareMetalMachine.DiskLimits, field: String) -> [SpecProblem] {
    var problems: [SpecProblem] = []
    if let iops = limits.iops, iops < 1000 || iops % 1000 != 0 || iops > most * 1000 {
      problems.append(
        SpecProblem(
          "InvalidLimit",
          "\(field).iops is \(iops), but data planes count requests in thousands; write a multiple of 1000 that is at "
            + "most \(most * 1000), or leave it out for no limit"))
    }
    for (name, text) in [
      ("bandwidth", limits.bandwidth), ("readBandwidth", limits.readBandwidth),
      ("writeBandwidth", limits.writeBandwidth),
    ] {
      guard let text else { continue }
      let bytes = Quantity(text)?.bytes ?? 0
      guard bytes < mebibyte || bytes % mebibyte != 0 || bytes / mebibyte > most else { continue }
      problems.append(
        SpecProblem(
          "InvalidLimit",
          "\(field).\(name) is '\(text)', but data planes count whole mebibytes a second; write it like 100Mi, at most "
            + "\(most)Mi, or leave it out for no limit"))
    }
    return problems
  }

  /// As an attachment carries them: `iops=5000,bandwidth=100Mi`; nil for none.
  package var text: String? {
    var parts: [String] = []
    if iops > 0 { parts.append("iops=\(iops)") }
    if bandwidth > 0 { parts.append("bandwidth=\(bandwidth)Mi") }
    if readBandwidth > 0 { parts.append("readBandwidth=\(readBandwidth)Mi") }
    if writeBandwidth > 0 { parts.append("writeBandwidth=\(writeBandwidth)Mi") }
    return parts.isEmpty ? nil : parts.joined(separator: ",")
  }

  /// Reads what `text` has written; nil for anything else.
  package init?(text: String) {
    self.init()
    for part in text.split(separator: ",", omittingEmptySubsequences: false) {
      let sides = part.split(separator: "=", maxSplits: 1, omittingEmptySubsequences: false)
      guard sides.count == 2 else { return nil }
      let digits = sides[0] == "iops" ? sides[1] : sides[1].hasSuffix("Mi") ? sides[1].dropLast(2) : ""
      guard let value = Int64(digits), value > 0, value <= VolumeLimits.most * 1000 else { return nil }
      switch sides[0] {
      case "iops": iops = value
      case "bandwidth": bandwidth = value
      case "readBandwidth": readBandwidth = value
      case "writeBandwidth": writeBandwidth = value
      default: return nil
      }
    }
    // Also what is twice in it is not ours.
    guard self.text == text else { return nil }
  }

  /// As a status shows them; nil for none.
  package var shown: BareMetalMachine.DiskLimits? {
    guard !isNone else { return nil }
    func quantity(_ mebibytes: Int64) -> String? { mebibytes > 0 ? "\(mebibytes)Mi" : nil }
    return BareMetalMachine.DiskLimits(
      iops: iops > 0 ? iops : nil, bandwidth: quantity(bandwidth), readBandwidth: quantity(readBandwidth),
      writeBandwidth: quantity(writeBandwidth))
  }
}

extension VolumeAttachment {
  /// The disk's name in the machine's spec; nil on attachments from before it was written down.
  package var disk: String? { metadata.annotations?[Names.diskAnnotation] }
  /// The limits that are wanted; nil where the annotation cannot be read.
  package var wantedLimits: VolumeLimits? {
    metadata.annotations?[Names.limitsAnnotation].map { VolumeLimits(text: $0) } ?? VolumeLimits()
  }
  /// Whether the server is to be cut off from the disk, whether its guest lets go or not.
  package var isForced: Bool { metadata.annotations?[Names.forceAnnotation] == "true" }
  /// Something that bm-handler saw of the disk.
  package func shown(_ member: String) -> String? { status?.attachmentMetadata?[member] }
}
