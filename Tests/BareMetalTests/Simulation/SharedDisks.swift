import BareMetal
import DPU
import IaaS
import Kubernetes

/// Disks that several machines of the simulated world have at the same time: one that all may write, and one that is read.
enum SharedDisks {
  static let claims = [
    claim("many", mode: VolumeSharing.readWriteMany, volume: "pvc-many-rwx"),
    claim("readers", mode: VolumeSharing.readOnlyMany, volume: "pvc-readers-rox"),
  ]

  private static func claim(_ name: String, mode: String, volume: String) -> PersistentVolumeClaim {
    PersistentVolumeClaim(
      metadata: ObjectMeta(name: name, namespace: "t", uid: "uid-\(name)", resourceVersion: "0"),
      spec: .init(accessModes: [mode], volumeMode: "Block", volumeName: volume), status: .init(phase: "Bound"))
  }
}

extension Simulation {
  /// A disk of a claim that machines share comes or goes, or is to be read only, or to be written as well: of the claim
  /// that is only read that is refused.
  func toggleSharedDisk(of machine: inout BareMetalMachine) {
    guard let claim = pick(SharedDisks.claims), let volume = claim.spec?.volumeName else { return }
    let name = claim.key.name
    let isRead = name == "readers"
    guard let index = machine.spec.disks.firstIndex(where: { $0.name == name }) else {
      machine.spec.disks.append(
        .init(
          name: name, readOnly: isRead ? !world.random.chance(10) : world.random.chance(20),
          existingClaim: .init(claimName: name)))
      world.named.insert(World.wish(machine.metadata.uid, volume))
      return
    }
    if world.random.chance(30) {
      machine.spec.disks[index].readOnly.toggle()
    } else {
      machine.spec.disks.remove(at: index)
      world.removed.insert(World.removal(machine.key, volume))
    }
  }

  /// What is not as the machine asks for, of the volumes that it shares with others.
  func unshared(_ machine: BareMetalMachine, on server: Server) -> [String] {
    SharedDisks.claims.compactMap { claim in
      let volume = claim.spec?.volumeName
      let shown = server.functions.values.first { $0.volume == volume }
      let wanted = machine.spec.disks.first { $0.name == claim.key.name }
      guard shown?.readOnly != wanted?.readOnly else { return nil }
      return "\(machine.key) has \(volume ?? "?") read-only: \(shown.map { "\($0.readOnly)" } ?? "not at all")"
    }
  }
}

extension World {
  /// That a machine has named a volume at some time.
  static func wish(_ machineUID: String?, _ volume: String) -> String { "\(machineUID ?? "?")/\(volume)" }
  /// That a volume was removed from the spec of a machine at some time.
  static func removal(_ machine: ObjectKey, _ volume: String) -> String { "\(machine)/\(volume)" }

  /// Whether a user has removed the volume that a server shows from the spec of the machine there.
  func isRemoved(_ volume: String, from host: String) -> Bool {
    if removed.contains(volume) { return true }
    return state.attachments(onHost: host).contains { attachment in
      guard attachment.volume == volume, let machine = attachment.machineKey else { return false }
      return removed.contains(Self.removal(machine, volume))
    }
  }

  /// What must never be: a volume for one server on two, one that is only read with a server that may write, one that
  /// several may write with a server whose machine has never named it.
  func check() {
    var holders: [String: String] = [:]
    for (host, server) in servers.sorted(by: { $0.key < $1.key }) where !server.isDead && !server.isBooting {
      for function in server.functions.values where function.name != Names.seedFunction {
        let volume = function.volume
        let sharing = VolumeSharing(handle: state.volumeHandles[volume] ?? volume)
        let record: VolumeAttachment?
        if let other = holders[volume], other != host {
          if sharing == .exclusive { violations.append("volume \(volume) is attached to \(other) and \(host)") }
          hadSharedVolume = true
        }
        holders[volume] = host
        switch sharing {
        case .exclusive: record = state.attachmentObjects[Names.attachment(volume: volume)]
        case .readers, .writers: record = state.attachments(onHost: host).first { $0.volume == volume }
        }
        if sharing == .readers, !function.readOnly || server.volumes[volume]?.readOnly != true {
          violations.append("\(host) may write to \(volume), which is only read")
        }
        guard let record else {
          violations.append("\(host) shows \(volume), which has no attachment")
          continue
        }
        if record.host != host {
          violations.append("\(host) shows \(volume), which is attached to \(record.host ?? "?")")
        }
        if sharing != .exclusive, !named.contains(Self.wish(record.machineUID, volume)) {
          violations.append("\(host) shows \(volume) to a machine that has never named it")
        }
        if let claim = state.hostObjects[host]?.status?.claim, claim.uid != record.machineUID {
          violations.append("\(host) is held by \(claim.name) and shows a volume of another machine")
        }
      }
    }
  }
}
