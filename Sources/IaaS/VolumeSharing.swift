/// How many servers may have a volume at the same time.
///
/// It is written into the volume's handle when the volume is made, and so can neither change while servers have the volume
/// nor be told differently by two PersistentVolumes of one volume. Everybody who decides about attachments reads it from
/// there: bm-controller, csi-controller, and each DPU's bm-handler for itself.
public enum VolumeSharing: Sendable, Hashable, CaseIterable {
  /// One server, which may write.
  case exclusive
  /// Any number of servers, none of which may write.
  case readers
  /// Any number of servers, which may write: what runs on them sees to it that they do so in turn.
  case writers

  /// The names of access modes, as claims have them.
  public static let readWriteMany = "ReadWriteMany"
  public static let readOnlyMany = "ReadOnlyMany"

  /// What a volume is made as for a claim with these access modes; nil where no volume can be all of it.
  ///
  /// A claim that is to be written by one server and read by many at other times is none: whether the one is still there
  /// when the many come would have to be decided between several records.
  public init?(accessModes: [String]) {
    let many = [Self.readWriteMany, Self.readOnlyMany]
    guard accessModes.allSatisfy({ many.contains($0) || $0 == "ReadWriteOnce" || $0 == "ReadWriteOncePod" }) else {
      return nil
    }
    if accessModes.contains(Self.readWriteMany) {
      self = .writers
    } else if !accessModes.contains(Self.readOnlyMany) {
      self = .exclusive
    } else if accessModes.allSatisfy({ $0 == Self.readOnlyMany }) {
      self = .readers
    } else {
      return nil
    }
  }

  /// What the volume with this handle is: `pvc-...-rwx`, `pvc-...-rox`, and everything else for one server.
  public init(handle: String) {
    self =
      Self.allCases.first { $0.suffix.map { handle.hasPrefix("pvc-") && handle.hasSuffix($0) } ?? false } ?? .exclusive
  }

  private var suffix: String? {
    switch self {
    case .exclusive: nil
    case .readers: "-rox"
    case .writers: "-rwx"
    }
  }

  /// The handle of a volume that is made for the claim with this UID.
  public func handle(claimUID: String) -> String { "pvc-\(claimUID)\(suffix ?? "")" }

  /// The UID in a handle that was made by `handle(claimUID:)`; nil for other handles.
  public static func claimUID(ofHandle handle: String) -> String? {
    guard handle.hasPrefix("pvc-") else { return nil }
    return String(handle.dropFirst(4).dropLast(VolumeSharing(handle: handle).suffix?.utf8.count ?? 0))
  }
}
