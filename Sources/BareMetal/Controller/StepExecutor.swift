import IaaS
import JSON
package import Kubernetes
package import Logging

/// Carries out the steps of plans. Every step may be repeated, after any crash.
package struct StepExecutor: Sendable {
  package let cluster: any Cluster
  package let logger: Logger
  /// Hands a wish about a server's power over.
  package let setPower: @Sendable (_ host: String, _ wish: PowerWish) -> Void

  package init(
    cluster: any Cluster, logger: Logger, setPower: @escaping @Sendable (_ host: String, _ wish: PowerWish) -> Void
  ) {
    self.cluster = cluster
    self.logger = logger
    self.setPower = setPower
  }

  /// How often a change is tried again because somebody else changed the same object.
  private static let conflictsMax = 4

  /// Carries out one step for the machine with this key and UID; a step that has been done already is no error.
  package func execute(_ step: MachineStep, key: ObjectKey, uid: String) async throws {
    if case .power = step {
    } else {
      logger.info("step", metadata: ["object": "\(key)", "step": "\(step.summary)"])
    }
    switch step {
    case .addFinalizer, .removeFinalizer:
      // These need the machine itself: see `MachineReconciler`.
      break
    case .createClaim(let claim):
      try await tolerating(.alreadyExists) { try await cluster.create(claim) }
    case .deleteClaim(let claim, let uid):
      try await tolerating(.notFound, .conflict) { try await cluster.deleteClaim(claim, uid: uid) }
    case .claimHost(let host):
      try await claim(host, key: key, uid: uid)
    case .releaseHost(let host, let kept):
      try await release(host, uid: uid, unlessLast: kept)
    case .createAttachment(let attachment):
      try await tolerating(.alreadyExists) { try await cluster.create(attachment) }
    case .deleteAttachment(let name, let attachmentUID, let host):
      if let host { try await checkNotHeld(host, uid: uid, attachment: name) }
      try await tolerating(.notFound, .conflict) { try await cluster.deleteAttachment(name, uid: attachmentUID) }
    case .noteLeftovers(let host, let volumes, let machine):
      try await note(volumes, of: machine, on: host, uid: uid)
    case .waiveAttachment(let name, let attachmentUID, let host):
      try await waive(name, attachmentUID: attachmentUID, host: host, uid: uid)
    case .annotateAttachment(let name, let attachmentUID, let changes):
      try await tolerating(.notFound, .conflict) {
        try await cluster.annotateAttachment(name, uid: attachmentUID, changes)
      }
    case .whileCurrent(let generation, let step):
      try await checkCurrent(generation, key: key, uid: uid, for: step)
      try await execute(step, key: key, uid: uid)
    case .writeBootData(let host, let data):
      try await write(data, host: host)
    case .deleteBootData(let host, let uid):
      try await tolerating(.notFound, .conflict) { try await cluster.deleteBootData(host: host, uid: uid) }
    case .power(let host, let wish):
      setPower(host, wish)
    }
  }

  private func tolerating(_ codes: KubernetesError.Code..., body: () async throws -> Void) async throws {
    do {
      try await body()
    } catch let error as KubernetesError where codes.contains(error.code) {
      // Done already, or by somebody else; the next plan looks at what is there.
    }
  }

  /// Throws where the machine asks for something else by now, or is no more, by the API server's own word.
  private func checkCurrent(_ generation: Int64?, key: ObjectKey, uid: String, for step: MachineStep) async throws {
    let machine: BareMetalMachine
    do {
      machine = try await cluster.machine(key)
    } catch let error as KubernetesError where error.code == .notFound {
      throw BareMetalError(.stale, operation: step.summary, message: "the machine is gone")
    }
    guard machine.metadata.uid == uid, machine.metadata.generation == generation, !machine.metadata.isBeingDeleted
    else {
      throw BareMetalError(.stale, operation: step.summary, message: "the machine's spec has changed meanwhile")
    }
  }

  /// Takes a host, if it is still free at this very version.
  private func claim(_ name: String, key: ObjectKey, uid: String) async throws {
    for _ in 0..<Self.conflictsMax {
      let host: BareMetalHost
      do {
        host = try await cluster.host(name)
      } catch let error as KubernetesError where error.code == .notFound {
        return
      }
      if let holder = host.status?.claim {
        guard holder.uid != uid else { return }
        throw BareMetalError(
          .stale, operation: "claim host \(name)", message: "\(holder.namespace)/\(holder.name) was faster")
      }
      guard !host.metadata.isBeingDeleted, host.metadata.hasFinalizer(Names.claimFinalizer), !host.spec.maintenance,
        !host.spec.drain, !host.spec.powerCut
      else {
        throw BareMetalError(.stale, operation: "claim host \(name)", message: "it takes no machine any more")
      }
      let claim: JSONValue = [
        "namespace": .string(key.namespace ?? ""), "name": .string(key.name), "uid": .string(uid),
      ]
      do {
        return try await cluster.patchStatus(of: host, ["claim": claim, "phase": "Claimed"], locked: true)
      } catch let error as KubernetesError where error.code == .conflict {
        continue
      }
    }
    throw BareMetalError(.stale, operation: "claim host \(name)", message: "it changes too often; tries again later")
  }

  /// Throws where the machine holds the host, by the API server's own word.
  private func checkNotHeld(_ name: String, uid: String, attachment: String) async throws {
    guard try await holds(name, uid: uid) else { return }
    throw BareMetalError(
      .stale, operation: "delete attachment \(attachment)", message: "the machine holds \(name), which may be on")
  }

  /// Gives a host back, if nothing of the machine is left on it at the API server itself.
  private func release(_ name: String, uid: String, unlessLast kept: String?) async throws {
    for _ in 0..<Self.conflictsMax {
      if let kept, try await !holds(kept, uid: uid) {
        throw BareMetalError(
          .stale, operation: "release host \(name)", message: "the machine does not hold \(kept) any more")
      }
      let host: BareMetalHost
      do {
        host = try await cluster.host(name)
      } catch let error as KubernetesError where error.code == .notFound {
        return
      }
      guard host.status?.claim?.uid == uid else { return }
      // A cache may be behind: what counts is what the API server has, at the version that is replaced.
      let left = try await cluster.attachments(onHost: name).filter { $0.machineUID == uid }
      guard left.isEmpty else {
        throw BareMetalError(
          .stale, operation: "release host \(name)", message: "an attachment of the machine is still there")
      }
      do {
        return try await cluster.patchStatus(of: host, ["claim": .null], locked: true)
      } catch let error as KubernetesError where error.code == .conflict {
        continue
      }
    }
    throw BareMetalError(.stale, operation: "release host \(name)", message: "it changes too often; tries again later")
  }

  private func note(_ volumes: [String], of machine: String, on name: String, uid: String) async throws {
    let host = try await cluster.host(name)
    guard host.spec.powerCut, host.status?.claim?.uid == uid else {
      throw BareMetalError(.stale, operation: "note what is left on \(name)", message: "its power is not cut any more")
    }
    var leftovers = host.status?.leftovers ?? []
    for volume in volumes where !leftovers.contains(where: { $0.volume == volume }) {
      leftovers.append(.init(volume: volume, machine: machine, since: .now()))
    }
    try await cluster.patchStatus(
      of: host, ["leftovers": try MergePatch.json(["list": leftovers])["list"] ?? []], locked: true)
  }

  /// Lets an attachment go, where by the API server's own word the operator says so still and it is written down.
  private func waive(_ name: String, attachmentUID: String, host hostName: String, uid: String) async throws {
    let host = try await cluster.host(hostName)
    let present = try await cluster.attachments(onHost: hostName).first { $0.metadata.uid == attachmentUID }
    guard let attachment = present, attachment.metadata.isBeingDeleted else { return }
    guard host.spec.powerCut, host.status?.claim?.uid == uid,
      host.status?.leftovers?.contains(where: { $0.volume == attachment.volume }) == true
    else {
      throw BareMetalError(
        .stale, operation: "let attachment \(name) go", message: "the power of \(hostName) is not cut any more")
    }
    try await tolerating(.notFound, .conflict) { try await cluster.removeFinalizer(from: attachment) }
  }

  /// Whether the machine holds a host, by the API server's own word.
  private func holds(_ name: String, uid: String) async throws -> Bool {
    do {
      return try await cluster.host(name).status?.claim?.uid == uid
    } catch let error as KubernetesError where error.code == .notFound {
      return false
    }
  }

  private func write(_ data: BootData, host: String) async throws {
    let secret = data.secret(host: host)
    guard let present = try await cluster.bootData(host: host) else {
      return try await tolerating(.alreadyExists) { try await cluster.create(bootData: secret) }
    }
    let before = try? BootData(present)
    if before == data { return }
    // By now another machine's: that is not this one's to withdraw.
    if data.isWithdrawn, let before, before.machineUID != data.machineUID { return }
    try await tolerating(.conflict, .notFound) { try await cluster.replace(bootData: secret, present: present) }
  }
}
