package import DPU
package import IaaS
package import Kubernetes

/// An interface on the server's bus, as read back.
package struct PluggedInterface: Sendable, Hashable {
  package var index: Int
  package var name: String
  package var mac: String
  package var tap: String
  /// Nil where everything is in place; else what is missing.
  package var fault: String?

  package init(index: Int, name: String, mac: String, tap: String, fault: String? = nil) {
    self.index = index
    self.name = name
    self.mac = mac
    self.tap = tap
    self.fault = fault
  }
}

/// What bm-handler looks at: its host, what is wanted there, and what the DPU shows.
package struct HandlerView: Sendable {
  /// Nil where the host object is gone.
  package var host: BareMetalHost?
  package var bootData: BootData?
  package var attachments: [VolumeAttachment]
  package var volumes: [BlockVolume]
  package var functions: [BlockFunction]
  package var interfaces: [PluggedInterface]
  /// The path of the seed disk that belongs to `bootData`; nil where it could not be made.
  package var seedFile: String?
  /// Where volumes' files are.
  package var volumesDirectory: String
  /// Where seed disks are; nil where that is not known.
  package var seedDirectory: String?

  package init(host: BareMetalHost?, volumesDirectory: String) {
    self.host = host
    self.volumesDirectory = volumesDirectory
    attachments = []
    volumes = []
    functions = []
    interfaces = []
  }
}

/// Something to do on the DPU. Every step may be repeated; they are done in the order of the plan.
package enum HandlerStep: Sendable, Hashable {
  /// Take a disk away: with the guest's consent, or cutting it off.
  case unplug(function: String, force: Bool = false)
  case deleteVolume(String)
  /// Shared means that other servers may have it for writing too.
  case createVolume(name: String, file: String, readOnly: Bool, shared: Bool = false)
  /// Have the server see that the volume has at least so many bytes now.
  case growVolume(String, bytes: UInt64)
  case limitVolume(String, VolumeLimits)
  case plug(function: String, volume: String, readOnly: Bool)
  case unplugInterface(PluggedInterface)
  case plugInterface(index: Int, GuestInterface)

  /// The volume that the step is for, where it is for one.
  package var volume: String? {
    switch self {
    case .deleteVolume(let name), .createVolume(let name, _, _, _), .plug(_, let name, _), .growVolume(let name, _),
      .limitVolume(let name, _):
      name
    case .unplug(let function, _): HandlerPlan.volume(ofFunction: function)
    case .unplugInterface, .plugInterface: nil
    }
  }

  /// The place on the bus that the step is for, where it is for an interface.
  package var interfaceIndex: Int? {
    switch self {
    case .unplugInterface(let interface): interface.index
    case .plugInterface(let index, _): index
    default: nil
    }
  }
}

package enum HandlerPlan {
  /// The DPU's condition that is false while something else answers at an address of the guest.
  package static let addressesCondition = "Addresses"

  /// Whether a name can be a volume's: it becomes part of a path.
  package static func isPlainVolume(_ name: String) -> Bool {
    !name.isEmpty && name.utf8.count <= 200 && !name.hasPrefix(".") && !name.hasPrefix("-")
      && name.utf8.allSatisfy { byte in
        (UInt8(ascii: "a")...UInt8(ascii: "z")).contains(byte) || (UInt8(ascii: "0")...UInt8(ascii: "9")).contains(byte)
          || byte == UInt8(ascii: "-") || byte == UInt8(ascii: ".")
      }
  }

  /// Why an attachment must not be carried out, or nil where it may.
  ///
  /// This is the fence: an attachment or boot data that a controller wrote for a machine that does not hold the host
  /// any more has no effect.
  package static func objection(to attachment: VolumeAttachment, host: BareMetalHost?) -> String? {
    guard let host else { return "the host object is gone" }
    guard attachment.spec.attacher == Names.storageDriver else { return "the attacher is another one" }
    guard attachment.spec.nodeName == host.spec.dpu.node else {
      return "it is for the node \(attachment.spec.nodeName), but this is \(host.spec.dpu.node)"
    }
    guard let claim = host.status?.claim, claim.uid == attachment.machineUID else {
      return "the machine that it is for does not hold the host"
    }
    guard isPlainVolume(attachment.volume) else { return "the volume's name '\(attachment.volume)' cannot be a file's" }
    guard isPlainVolume(attachment.volumeHandle) else {
      return "the volume's handle '\(attachment.volumeHandle.prefix(140))' cannot be a file's name"
    }
    // The name is what keeps the API server from having two of them.
    let name = Names.attachment(volume: attachment.volumeHandle, machineUID: claim.uid)
    guard attachment.metadata.name == name else {
      return "an attachment of the volume '\(attachment.volumeHandle)' for this machine is named \(name)"
    }
    guard attachment.isReadOnly || VolumeSharing(handle: attachment.volumeHandle) != .readers else {
      return "the volume '\(attachment.volumeHandle)' is one that servers only read, but the annotation "
        + "\(Names.readOnlyAnnotation) is not true"
    }
    guard let order = attachment.bootOrder, (0...98).contains(order) else {
      return "the annotation \(Names.bootOrderAnnotation) is missing or not from 0 to 98"
    }
    guard attachment.wantedLimits != nil else {
      return "the annotation \(Names.limitsAnnotation) cannot be read; it is like iops=5000,bandwidth=100Mi"
    }
    return nil
  }

  /// What is to become of the seed disk and the interfaces.
  package enum BootWish: Sendable, Hashable {
    case show(BootData)
    /// What is there stays: nothing tells what is wanted.
    case keep
    case remove
  }

  /// What is wanted of the seed disk and the interfaces. Boot data counts only for the machine that holds the host; while
  /// that has a boot in effect, boot data that is absent or cannot be read is no wish to end it.
  ///
  /// A host that nobody holds and that has boot data which was not withdrawn was torn away from a machine and registered
  /// again: its server may be on, and the machine is about to claim it.
  package static func bootWish(_ bootData: BootData?, host: BareMetalHost?) -> BootWish {
    guard let host else { return .keep }
    guard let claim = host.status?.claim else {
      return bootData.map { $0.isWithdrawn ? .remove : .keep } ?? .remove
    }
    if let bootData, bootData.machineUID == claim.uid { return bootData.isWithdrawn ? .remove : .show(bootData) }
    return host.status?.dpu?.boot?.hasPrefix("\(claim.uid)/") == true ? .keep : .remove
  }

  /// Boot data counts only for the machine that holds the host.
  package static func effectiveBootData(_ bootData: BootData?, host: BareMetalHost?) -> BootData? {
    if case .show(let data) = bootWish(bootData, host: host) { data } else { nil }
  }

  /// The boot whose seed disk and interfaces are in place, as it is to be reported. While the server is on, a boot stays
  /// in effect also while its interfaces change.
  package static func bootInEffect(_ view: HandlerView) -> String? {
    switch bootWish(view.bootData, host: view.host) {
    case .show(let data):
      isBootReady(view) || isSeedInUse(view) ? data.boot : nil
    case .keep: view.host?.status?.dpu?.boot
    case .remove: nil
    }
  }

  /// Whether the server is on with the boot that is wanted.
  private static func isSeedInUse(_ view: HandlerView) -> Bool {
    guard let data = effectiveBootData(view.bootData, host: view.host) else { return false }
    return view.host?.status?.power == .on && view.host?.status?.dpu?.boot == data.boot
  }

  /// Whether a function has a name as the handler gives them: `blk-<two digits>-<volume>`. Others in the data plane are
  /// somebody else's and stay.
  package static func isOwn(_ function: BlockFunction) -> Bool { isOwn(function: function.name) }

  package static func isOwn(function name: String) -> Bool {
    let parts = name.split(separator: "-", maxSplits: 2, omittingEmptySubsequences: false)
    return parts.count == 3 && parts[0] == "blk" && parts[1].utf8.count == 2
      && parts[1].utf8.allSatisfy { (UInt8(ascii: "0")...UInt8(ascii: "9")).contains($0) } && !parts[2].isEmpty
  }

  /// The volume in a function's name.
  package static func volume(ofFunction name: String) -> String? {
    let parts = name.split(separator: "-", maxSplits: 2, omittingEmptySubsequences: false)
    return parts.count == 3 && parts[0] == "blk" && !parts[2].isEmpty ? String(parts[2]) : nil
  }

  /// Whether a volume is one that the handler made: its file is in the pool or among the seed disks, or an attachment
  /// names it, which may be from a time when the pool was elsewhere.
  private static func isOwn(_ volume: BlockVolume, _ view: HandlerView) -> Bool {
    volume.name == Names.seedFunction || volume.file.hasPrefix(view.volumesDirectory + "/")
      || view.seedDirectory.map { volume.file.hasPrefix($0 + "/") } == true
      || view.attachments.contains { $0.volume == volume.name }
  }

  /// The steps from what the DPU shows to what is wanted: first away, then there.
  package static func steps(_ view: HandlerView) -> [HandlerStep] {
    var removals: [HandlerStep] = []
    var additions: [HandlerStep] = []
    // Last: a volume that cannot grow is shown all the same.
    var growths: [HandlerStep] = []
    // At the very end, because a guest may take its time to let go.
    var partings: [HandlerStep] = []
    let parting = Dictionary(
      view.attachments.filter { $0.metadata.isBeingDeleted }.map { ($0.volume, $0) },
      uniquingKeysWith: { first, _ in first })
    let functions = Dictionary(view.functions.map { ($0.name, $0) }, uniquingKeysWith: { first, _ in first })
    let volumes = Dictionary(view.volumes.map { ($0.name, $0) }, uniquingKeysWith: { first, _ in first })
    var keptFunctions: Set<String> = []
    var keptVolumes: Set<String> = []

    func want(
      function: String, volume: String, file: String, readOnly: Bool, shared: Bool = false, bytes: UInt64? = nil,
      limits: VolumeLimits? = nil
    ) {
      keptFunctions.insert(function)
      keptVolumes.insert(volume)
      var mustCreate = true
      if let present = volumes[volume] {
        if present.file == file, present.readOnly == readOnly {
          mustCreate = false
        } else {
          for used in view.functions where used.volume == volume && isOwn(used) {
            removals.append(.unplug(function: used.name))
          }
          removals.append(.deleteVolume(volume))
        }
      }
      if mustCreate {
        additions.append(.createVolume(name: volume, file: file, readOnly: readOnly, shared: shared))
      }
      // Before the server sees it: a disk that cannot be limited is not shown.
      if let limits, limits != (mustCreate ? VolumeLimits() : volumes[volume]?.limits ?? VolumeLimits()) {
        additions.append(.limitVolume(volume, limits))
      }
      if !mustCreate, let bytes, let present = volumes[volume], present.capacity < bytes {
        growths.append(.growVolume(volume, bytes: bytes))
      }
      if let present = functions[function], present.volume == volume, present.readOnly == readOnly, !mustCreate {
        return
      }
      if functions[function] != nil, !mustCreate { removals.append(.unplug(function: function)) }
      additions.append(.plug(function: function, volume: volume, readOnly: readOnly))
    }

    for attachment in view.attachments where !attachment.metadata.isBeingDeleted {
      let volume = attachment.volume
      guard objection(to: attachment, host: view.host) == nil, let order = attachment.bootOrder else {
        // What is there stays there until its attachment is deleted: only bm-controller knows whether the power is off.
        keptVolumes.insert(volume)
        for function in view.functions where function.volume == volume { keptFunctions.insert(function.name) }
        continue
      }
      want(
        function: Names.blockFunction(bootOrder: order, volume: volume), volume: volume,
        file: "\(view.volumesDirectory)/\(attachment.volumeHandle).img", readOnly: attachment.isReadOnly,
        shared: VolumeSharing(handle: attachment.volumeHandle) == .writers,
        bytes: attachment.wantedCapacity, limits: attachment.wantedLimits)
    }

    let bootData = effectiveBootData(view.bootData, host: view.host)
    if isSeedInUse(view), functions[Names.seedFunction] != nil, volumes[Names.seedFunction] != nil {
      // The server has it mounted, perhaps. Another one is for the next boot.
      keptFunctions.insert(Names.seedFunction)
      keptVolumes.insert(Names.seedFunction)
    } else if bootData != nil, let seed = view.seedFile {
      want(function: Names.seedFunction, volume: Names.seedFunction, file: seed, readOnly: true)
    }
    let keepsBoot = bootWish(view.bootData, host: view.host) == .keep
    for function in view.functions where !keptFunctions.contains(function.name) && isOwn(function) {
      if keepsBoot, function.name == Names.seedFunction {
        keptVolumes.insert(function.volume)
        continue
      }
      if let attachment = parting[function.volume] {
        partings.append(.unplug(function: function.name, force: attachment.isForced))
      } else {
        removals.append(.unplug(function: function.name))
      }
    }
    for volume in view.volumes where !keptVolumes.contains(volume.name) && isOwn(volume, view) {
      if parting[volume.name] == nil {
        removals.append(.deleteVolume(volume.name))
      } else {
        partings.append(.deleteVolume(volume.name))
      }
    }

    let wanted = GuestInterface.slots(bootData?.interfaces ?? [])
    var inPlace: Set<Int> = []
    for present in view.interfaces {
      let match = wanted[present.index]
      if let match, match.name == present.name, match.mac == present.mac {
        if present.fault == nil { inPlace.insert(present.index) }
      } else if !keepsBoot {
        if match == nil {
          partings.append(.unplugInterface(present))
        } else {
          removals.append(.unplugInterface(present))
        }
      }
    }
    for (index, interface) in wanted.sorted(by: { $0.key < $1.key }) where !inPlace.contains(index) {
      additions.append(.plugInterface(index: index, interface))
    }
    return unique(removals) + additions + growths + unique(partings)
  }

  /// Functions before the volumes behind them, each once.
  private static func unique(_ steps: [HandlerStep]) -> [HandlerStep] {
    var seen: Set<HandlerStep> = []
    let once = steps.filter { seen.insert($0).inserted }
    func isFunction(_ step: HandlerStep) -> Bool {
      if case .unplug = step { return true }
      return false
    }
    return once.filter(isFunction) + once.filter { !isFunction($0) }
  }

  /// Whether the DPU shows nothing of a volume any more.
  package static func isGone(volume: String, volumes: [BlockVolume], functions: [BlockFunction]) -> Bool {
    !volumes.contains { $0.name == volume } && !functions.contains { $0.volume == volume }
  }

  /// Whether the DPU shows an attachment's volume as it should.
  package static func isShown(_ attachment: VolumeAttachment, functions: [BlockFunction]) -> Bool {
    guard let order = attachment.bootOrder else { return false }
    let name = Names.blockFunction(bootOrder: order, volume: attachment.volume)
    return functions.contains {
      $0.name == name && $0.volume == attachment.volume && $0.readOnly == attachment.isReadOnly
    }
  }

  /// Whether seed disk and interfaces are all in place.
  package static func isBootReady(_ view: HandlerView) -> Bool {
    guard let bootData = effectiveBootData(view.bootData, host: view.host), let seed = view.seedFile else {
      return false
    }
    let hasSeed =
      view.functions.contains { $0.name == Names.seedFunction && $0.volume == Names.seedFunction }
      && view.volumes.contains { $0.name == Names.seedFunction && $0.file == seed }
    let hasInterfaces = GuestInterface.slots(bootData.interfaces).allSatisfy { index, wanted in
      view.interfaces.contains {
        $0.index == index && $0.name == wanted.name && $0.mac == wanted.mac && $0.fault == nil
      }
    }
    return hasSeed && hasInterfaces
  }
}
