package import IaaS

/// Where seed disks come from. Every call may be repeated.
package protocol SeedStore: Sendable {
  /// The directory that the disks are in.
  var directory: String { get }
  /// Makes the disk for this boot data where it is not there, and returns its path.
  func make(for data: BootData) async throws -> String
  /// Removes all disks but this one.
  func removeOthers(than path: String?) throws
}

extension SeedDisk: SeedStore {}

/// What can be seen of the guest from the DPU's side.
package protocol GuestSight: Sendable {
  /// What was seen of the guest in the boot that `follow` was told about last.
  var interfaces: [BareMetalHost.Interface] { get }
  /// Addresses of the guest at which something else answers, for people.
  var conflicts: [String] { get }
  /// Says which boot to watch. The same one again changes nothing; nil means that there is no guest.
  /// - Parameters:
  ///   - isOn: False while the server is known to be off.
  ///   - known: What was reported before, which still holds if it is of the same boot.
  func follow(
    boot: String?, isOn: Bool, interfaces: [GuestInterface],
    known: (boot: String?, interfaces: [BareMetalHost.Interface]))
}

extension GuestWatcher: GuestSight {}
