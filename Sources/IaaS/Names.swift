/// Names that the components agree on: labels, annotations, finalizers and derived object names.
public enum Names {
  /// The API group of all resources here.
  public static let group = "iaas.yusur.io"
  /// The API group that bm-api serves: what is done to a machine and seen of it.
  public static let subresourceGroup = "subresources.iaas.yusur.io"
  /// The namespace of the cloud's own objects.
  public static let systemNamespace = "ycloud-system"

  /// Label: the host that an attachment or boot data belongs to.
  public static let hostLabel = "iaas.yusur.io/host"
  /// Label: the UID of the machine that a claim or an attachment belongs to.
  public static let machineUIDLabel = "iaas.yusur.io/machine-uid"

  /// Annotation: `namespace/name` of the machine, for people.
  public static let machineAnnotation = "iaas.yusur.io/machine"
  /// Annotation: the UID of the machine.
  public static let machineUIDAnnotation = "iaas.yusur.io/machine-uid"
  /// Annotation of boot data: the boot that it is for; a new value makes the handler look for the guest anew.
  public static let bootAnnotation = "iaas.yusur.io/boot"
  /// Annotation of an attachment: the disk's place in the boot order, a decimal number.
  public static let bootOrderAnnotation = "iaas.yusur.io/boot-order"
  /// Annotation of an attachment: `true` where the server may only read the volume.
  public static let readOnlyAnnotation = "iaas.yusur.io/read-only"
  /// Annotation of an attachment: the volume's handle, which is its name in the pool.
  public static let volumeHandleAnnotation = "iaas.yusur.io/volume-handle"
  /// Annotation of an attachment: the disk's name in the machine's spec.
  public static let diskAnnotation = "iaas.yusur.io/disk"
  /// Annotation of an attachment: the disk's limits, as `iops=5000,bandwidth=100Mi`; absent for none.
  public static let limitsAnnotation = "iaas.yusur.io/limits"
  /// Annotation of an attachment that is being deleted: `true` cuts the disk off, whether the guest lets go or not.
  public static let forceAnnotation = "iaas.yusur.io/force-detach"
  /// Annotation of a machine: names of removed disks, with commas between, that are cut off from the running guest.
  public static let forceUnplugAnnotation = "iaas.yusur.io/force-unplug"
  /// Annotation of an attachment by which an upload keeps servers away from the volume: `namespace/name` of the claim.
  public static let uploadHoldAnnotation = "csi.ycloud.yusur.io/upload-into"
  /// Annotation of a claim: `true` says that its content is uploaded.
  public static let uploadAnnotation = "csi.ycloud.yusur.io/upload"
  /// Annotation of a claim, by csi-controller: how far the upload is.
  public static let uploadPhaseAnnotation = "csi.ycloud.yusur.io/upload-phase"
  /// The phase of an upload whose content is complete.
  public static let uploadSucceeded = "Succeeded"
  /// Annotation of an attachment, by csi-controller: the size in bytes that the server is to see of a volume that has
  /// grown.
  public static let capacityAnnotation = "csi.ycloud.yusur.io/capacity"
  /// Member of an attachment's reported metadata: the size in bytes that the server sees.
  public static let shownCapacity = "capacity"
  /// Annotation of a claim, by csi-controller: why it has no volume yet, `<Reason>: <message>`.
  public static let provisioningMessageAnnotation = "csi.ycloud.yusur.io/provisioning-message"
  /// Member of an attachment's reported metadata: the PCIe function that shows the volume.
  public static let shownFunction = "function"
  /// Member of an attachment's reported metadata: the serial number that the guest reads from the disk.
  public static let shownSerial = "serial"
  /// Member of an attachment's reported metadata: the limits in effect, as in `limitsAnnotation`; absent for none.
  public static let shownLimits = "limits"
  /// Annotation of a machine: any new value restarts it; ``RestartRequest`` says how.
  public static let restartAnnotation = "iaas.yusur.io/restart-requested"
  /// Label of a migration by which bm-controller empties a host: the host.
  public static let evacuatedHostLabel = "iaas.yusur.io/evacuated-host"
  /// Annotation of such a migration: the generation of the host that it was made for.
  public static let hostGenerationAnnotation = "iaas.yusur.io/host-generation"
  /// Annotation of a machine: `true` lets it be deleted while something of it cannot be given back.
  public static let forceDeleteAnnotation = "iaas.yusur.io/force-delete"
  /// Annotation of a host: any new value has its BMC read anew.
  public static let rescanAnnotation = "iaas.yusur.io/rescan-requested"
  /// Annotations of a claim that the cluster's volume binder writes where a provisioner's turn has come, the first one in
  /// Kubernetes 1.20 to 1.22: claims that have them already are left as they are.
  public static let storageProvisionerAnnotations = [
    "volume.beta.kubernetes.io/storage-provisioner", "volume.kubernetes.io/storage-provisioner",
  ]
  /// Annotation of a claim: `namespace/name` of the claim to clone, where that is in another namespace.
  public static let cloneFromAnnotation = "csi.ycloud.yusur.io/clone-from"

  /// Annotation of a VolumeSnapshot, by bm-controller: the group in which the data plane has captured the volume together
  /// with others. csi-controller makes the snapshot of that.
  public static let snapshotGroupAnnotation = "iaas.yusur.io/snapshot-group"
  /// Finalizer of snapshots, restores and clones of machines.
  public static let lifeFinalizer = "iaas.yusur.io/machine-life"
  /// Label of what was made for a snapshot, restore or clone of a machine: its UID.
  public static let makerUIDLabel = "iaas.yusur.io/made-for-uid"

  /// Finalizer of a machine: bm-controller gives everything back before the machine goes.
  public static let machineFinalizer = "iaas.yusur.io/machine"
  /// Finalizer of a host while a machine holds it.
  public static let claimFinalizer = "iaas.yusur.io/claimed"
  /// Finalizer of an attachment: bm-handler removes it once the DPU shows the function no more.
  public static let attachmentFinalizer = "iaas.yusur.io/dpu"

  /// The attacher of volumes and the provisioner of the storage class.
  public static let storageDriver = "csi.ycloud.yusur.io"
  /// Type of a boot-data secret.
  public static let bootDataType = "iaas.yusur.io/boot-data"

  /// The claim of a machine's disk that is made from a template.
  public static func claim(machine: String, disk: String) -> String { "\(machine)-\(disk)" }

  /// The one attachment that a volume can have, or its upload: because the name is made from the volume's handle, the API
  /// server refuses a second, also where two PersistentVolumes have the same handle.
  public static func attachment(volume handle: String) -> String { attachmentPrefix + handle }

  /// The attachment that a machine can have of a volume. Of one that several servers may have it is the machine's own, so
  /// that the machine has it on one host at a time.
  public static func attachment(volume handle: String, machineUID: String) -> String {
    // No handle has a dot, so that no name of one kind is a name of the other.
    VolumeSharing(handle: handle) == .exclusive
      ? attachment(volume: handle) : "\(attachmentPrefix)\(handle).\(machineUID)"
  }

  /// What the names of attachments begin with; the volume's handle follows.
  public static let attachmentPrefix = "ycloud-"

  /// Whether a text can be the handle of a volume in the pool: 1 to 128 of a-z, 0-9 and '-', with a letter or digit at
  /// both ends. It becomes a part of a path and of an object's name.
  public static func isVolumeHandle(_ text: String) -> Bool {
    func isAlphanumeric(_ byte: UInt8) -> Bool {
      (UInt8(ascii: "a")...UInt8(ascii: "z")).contains(byte) || (UInt8(ascii: "0")...UInt8(ascii: "9")).contains(byte)
    }
    let bytes = text.utf8
    guard let first = bytes.first, let last = bytes.last, bytes.count <= 128 else { return false }
    return isAlphanumeric(first) && isAlphanumeric(last)
      && bytes.allSatisfy { isAlphanumeric($0) || $0 == UInt8(ascii: "-") }
  }

  /// The secret that holds a host's boot data, in `systemNamespace`.
  public static func bootData(host: String) -> String { "host-\(host)" }

  /// The PCIe function of a disk: `blk-<boot order>-<volume>`.
  public static func blockFunction(bootOrder: Int, volume: String) -> String {
    "blk-\(twoDigits(bootOrder))-\(volume)"
  }

  /// The PCIe function of the seed disk, last in the boot order.
  public static let seedFunction = "blk-99-seed"

  /// The PCIe function of a NIC: `nic-<index>-<interface>`.
  public static func networkFunction(index: Int, interface: String) -> String {
    "nic-\(twoDigits(index))-\(interface)"
  }

  private static func twoDigits(_ number: Int) -> String { number < 10 ? "0\(number)" : "\(number)" }
}

/// MAC addresses for interfaces that do not ask for one.
public enum MACAddress {
  /// A locally administered unicast address from a UID and the interface's index (FNV-1a, 64 bits): the same input
  /// always gives the same address.
  public static func derived(uid: String, index: Int) -> String {
    var hash: UInt64 = 0xcbf2_9ce4_8422_2325
    for byte in uid.utf8 { hash = (hash ^ UInt64(byte)) &* 0x100_0000_01b3 }
    hash = (hash ^ UInt64(UInt8(truncatingIfNeeded: index))) &* 0x100_0000_01b3
    // FNV's low bits depend on the low bits of the input only; fold the high ones in.
    hash ^= hash >> 32
    var text = "02"
    for shift in stride(from: 32, through: 0, by: -8) {
      let byte = UInt8(truncatingIfNeeded: hash >> UInt64(shift))
      text += byte < 16 ? ":0" : ":"
      text += String(byte, radix: 16)
    }
    return text
  }
}
