package import IaaS
package import Kubernetes

/// Something to do for a machine. Every step may be repeated, and the steps of one plan may run in any order.
package enum MachineStep: Sendable, Hashable {
  /// Keeps the machine until everything is given back. Comes alone.
  case addFinalizer
  case createClaim(PersistentVolumeClaim)
  case deleteClaim(ObjectKey, uid: String)
  /// Makes the machine the one holder of a host that has none.
  case claimHost(String)
  /// Gives a host back whose attachments are gone and whose power is off. Where `unlessLast` names another host, only
  /// while the machine holds that one: somebody may have decided meanwhile that it is to be the other way round.
  case releaseHost(String, unlessLast: String? = nil)
  case createAttachment(VolumeAttachment)
  /// Takes an attachment away. Where `unlessHeld` names a host, only if the machine does not hold it: the server was
  /// not seen off, and what was known of the claim may be old.
  case deleteAttachment(String, uid: String, unlessHeld: String? = nil)
  /// Writes down on the host what its DPU may still show when it comes back.
  case noteLeftovers(host: String, volumes: [String], machine: String)
  /// Lets an attachment go without the DPU's word, because an operator says that the DPU has no power.
  case waiveAttachment(String, uid: String, host: String)
  /// Changes annotations of an attachment; nil removes one.
  case annotateAttachment(String, uid: String, [String: String?])
  /// Does something only if the machine's spec is still what the plan was made from: it takes something from a running
  /// server, and what was known of the spec may be old.
  indirect case whileCurrent(generation: Int64?, MachineStep)
  case writeBootData(host: String, BootData)
  case deleteBootData(host: String, uid: String)
  case power(host: String, PowerWish)
  /// Lets the machine go. Comes alone.
  case removeFinalizer

  /// Whether it says something about the power of this host.
  package func isPower(of host: String) -> Bool {
    if case .power(host, _) = self { true } else { false }
  }

  /// Whether it takes this attachment away.
  package func deletesAttachment(_ name: String?) -> Bool {
    switch self {
    case .deleteAttachment(let deleted, _, _): deleted == name
    case .whileCurrent(_, let step): step.deletesAttachment(name)
    default: false
    }
  }

  /// For logs: what and to which object, without content.
  package var summary: String {
    switch self {
    case .addFinalizer: "add the finalizer"
    case .createClaim(let claim): "create claim \(claim.key)"
    case .deleteClaim(let key, _): "delete claim \(key)"
    case .claimHost(let host): "claim host \(host)"
    case .releaseHost(let host, _): "release host \(host)"
    case .createAttachment(let attachment): "create attachment \(attachment.metadata.name ?? "")"
    case .deleteAttachment(let name, _, _): "delete attachment \(name)"
    case .noteLeftovers(let host, let volumes, _): "note on \(host) what is left: \(volumes.joined(separator: ", "))"
    case .waiveAttachment(let name, _, let host): "let attachment \(name) go without the word of \(host)"
    case .annotateAttachment(let name, _, let changes):
      "annotate attachment \(name): \(changes.keys.sorted().joined(separator: ", "))"
    case .whileCurrent(_, let step): step.summary
    case .writeBootData(let host, _): "write the boot data of \(host)"
    case .deleteBootData(let host, _): "delete the boot data of \(host)"
    case .power(let host, let wish): "power of \(host): \(wish)"
    case .removeFinalizer: "remove the finalizer"
    }
  }
}

/// The user data as far as it could be read.
package enum UserData: Sendable, Hashable {
  case text(String)
  /// Nothing depends on it now.
  case notRead
  /// It is not there or cannot be used; what to do about it.
  case problem(reason: String, message: String)
}

/// Everything that a machine's plan looks at.
package struct MachineView: Sendable {
  package var machine: BareMetalMachine
  /// Claims of the machine's namespace that it names or owns, by name.
  package var claims: [String: PersistentVolumeClaim]
  /// Claims that its templates clone.
  package var sources: [ObjectKey: PersistentVolumeClaim]
  /// The PersistentVolumes of the claims, by name.
  package var persistentVolumes: [String: PersistentVolume]
  /// Attachments that carry the machine's UID.
  package var attachments: [VolumeAttachment]
  /// Attachments of others by volume, for the machine's volumes.
  package var foreignAttachments: [String: VolumeAttachment]
  /// All hosts, or at least those that the machine holds, names or may get.
  package var hosts: [BareMetalHost]
  package var power: [String: PowerView]
  /// Boot data by host, for the hosts that the machine holds.
  package var bootData: [String: Secret]
  package var userData: UserData
  /// Other machines that ask for the same MAC or IPv4 address, by address.
  package var rivals: [String: [ObjectKey]]
  /// Where the machine is being moved to.
  package var move: MachineMove?
  package var now: MicroTimestamp
  /// How long an operating system gets to shut down.
  package var shutdownGrace: Duration
  /// How long a guest may hold on to what was removed before that is told.
  package var unplugLimit: Duration = .seconds(60)

  package init(machine: BareMetalMachine, now: MicroTimestamp) {
    self.machine = machine
    self.now = now
    claims = [:]
    sources = [:]
    persistentVolumes = [:]
    attachments = []
    foreignAttachments = [:]
    hosts = []
    power = [:]
    bootData = [:]
    userData = .text("")
    rivals = [:]
    shutdownGrace = .seconds(30)
  }
}

/// What to do, and what the status shall say.
package struct MachinePlan: Sendable {
  package var steps: [MachineStep]
  package var status: BareMetalMachine.Status
}

extension VolumeAttachment {
  package var machineUID: String? { metadata.annotations?[Names.machineUIDAnnotation] }
  package var host: String? { metadata.labels?[Names.hostLabel] }
  /// The PersistentVolume's name, by which the DPU knows the volume.
  package var volume: String { spec.source.persistentVolumeName ?? "" }
  /// The volume's name in the pool. Attachments that do not tell it are of a time when both names were the same.
  package var volumeHandle: String { metadata.annotations?[Names.volumeHandleAnnotation] ?? volume }
  /// The claim that is filled by an upload, where the attachment is the upload's: it keeps servers away meanwhile.
  package var uploadHold: String? { metadata.annotations?[Names.uploadHoldAnnotation] }
  package var isAttached: Bool { status?.attached == true }
  package var bootOrder: Int? { metadata.annotations?[Names.bootOrderAnnotation].flatMap { Int($0) } }
  package var isReadOnly: Bool { metadata.annotations?[Names.readOnlyAnnotation] == "true" }
  /// The size in bytes that the server is to see; nil where the volume has not grown since it was attached.
  package var wantedCapacity: UInt64? { metadata.annotations?[Names.capacityAnnotation].flatMap { UInt64($0) } }
  /// The size in bytes that the server was last seen to see.
  package var shownCapacity: UInt64? { status?.attachmentMetadata?[Names.shownCapacity].flatMap { UInt64($0) } }
}
