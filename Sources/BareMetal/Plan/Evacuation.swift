package import IaaS
package import Kubernetes

/// How a host is taken from a machine: power off, detach, withdraw the boot data, remove it, release, in this order.
package struct Evacuation: Sendable, Hashable {
  package var steps: [MachineStep]
  /// Nil when nothing is left; else what it waits for and what to do about it.
  package var waitsFor: String?

  package var isDone: Bool { steps.isEmpty && waitsFor == nil }
}

/// The next steps to take `host` from the machine with `uid`.
///
/// The attachments, and what the boot data asks for, go only after the server was read as off several times in a row.
/// Where the host is held by somebody else or is no more, its power is none of this machine's business: there
/// bm-handler's word that the function is gone is what counts, without which an attachment does not go away.
/// - Parameters:
///   - host: nil where the host object is gone.
///   - attachments: Those of the machine on this host.
///   - bootData: The host's, whoever's it is.
///   - kept: A host that the machine must hold for this one to be given back; see `MachineStep.releaseHost`.
package func evacuate(
  hostName: String, host: BareMetalHost?, uid: String, attachments: [VolumeAttachment], bootData: Secret?,
  power: PowerView?, grace: Duration, keeping kept: String? = nil
) -> Evacuation {
  var result = Evacuation(steps: [], waitsFor: nil)
  let held = host?.status?.claim?.uid == uid
  // Whatever comes first: a server that is given back must not go on meanwhile.
  if held, power?.wantsOn == true { result.steps.append(.power(host: hostName, .off(grace: grace))) }
  let power = power?.trusting(host)
  // Both must be without power: a DPU that gives signs of life is asked, whatever was said.
  let isDPUSilent = host?.status?.conditions?.condition(BareMetalHost.ConditionType.dpuReady)?.reason == "HandlerSilent"
  let mayWaive = held && host?.spec.powerCut == true && power?.fencedOff == true && isDPUSilent

  // Whether the DPU shows it already is not certain before it is reported, so every one of them counts.
  let inUse = attachments.contains { !$0.metadata.isBeingDeleted }
  let isBooted = host?.status?.dpu?.boot?.hasPrefix("\(uid)/") == true
  if held, inUse || isBooted, power?.fencedOff != true {
    if result.steps.isEmpty { result.steps.append(.power(host: hostName, .off(grace: grace))) }
    result.waitsFor = offMessage(
      hostName, power,
      consequence: inUse ? "its volumes stay attached until then" : "its network stays in place until then")
    return result
  }
  for attachment in attachments where !attachment.metadata.isBeingDeleted {
    guard let name = attachment.metadata.name, let uid = attachment.metadata.uid else { continue }
    result.steps.append(.deleteAttachment(name, uid: uid, unlessHeld: held ? nil : hostName))
  }
  if mayWaive, let host, !attachments.isEmpty {
    result.steps += waive(attachments, of: host, name: hostName)
    result.waitsFor =
      "takes the volumes from \(hostName) without its DPU's word, as an operator says that it has no power"
    return result
  }
  if let attachment = attachments.first {
    let error = attachment.status?.detachError?.message.map { " (\($0))" } ?? ""
    result.waitsFor =
      "waits for bm-handler of \(hostName) to detach the volume \(attachment.volume)\(error); is it running? If the "
      + "server is off for sure and its DPU is lost, remove the finalizer \(Names.attachmentFinalizer) from the "
      + "volumeattachment \(attachment.metadata.name ?? "")"
    return result
  }
  if held, isBooted, let claim = host?.status?.claim {
    // That the secret is missing says nothing: bm-handler acts on what it reads.
    let withdrawn = BootData.withdrawn(
      machine: ObjectKey(namespace: claim.namespace, name: claim.name), machineUID: uid)
    if bootData.flatMap({ try? BootData($0) }) != withdrawn {
      result.steps.append(.writeBootData(host: hostName, withdrawn))
    }
    if !mayWaive {
      result.waitsFor =
        "waits for bm-handler of \(hostName) to remove the seed disk and the network interfaces; is it running?"
      return result
    }
    // What the DPU finds when it comes back is that nobody holds the host.
    result.steps.removeAll { if case .writeBootData = $0 { true } else { false } }
  }
  if let bootData, bootData.metadata.annotations?[Names.machineUIDAnnotation] == uid,
    let secretUID = bootData.metadata.uid
  {
    result.steps.append(.deleteBootData(host: hostName, uid: secretUID))
    result.waitsFor = "removes the boot data of \(hostName)"
    return result
  }
  guard held else { return result }
  // Nobody gets a server that is still running for somebody else.
  guard power?.fencedOff == true else {
    if result.steps.isEmpty { result.steps.append(.power(host: hostName, .off(grace: .zero))) }
    result.waitsFor = offMessage(hostName, power, consequence: "the host stays claimed until then")
    return result
  }
  result.steps.append(.releaseHost(hostName, unlessLast: kept))
  result.waitsFor = "gives \(hostName) back"
  return result
}

/// The steps by which attachments go without their DPU's word: first all of them are written down.
private func waive(_ attachments: [VolumeAttachment], of host: BareMetalHost, name: String) -> [MachineStep] {
  let noted = Set(host.status?.leftovers?.map(\.volume) ?? [])
  let missing = attachments.filter { !noted.contains($0.volume) }
  guard missing.isEmpty else {
    let claim = host.status?.claim
    let machine = claim.map { "\($0.namespace)/\($0.name)" } ?? ""
    return [.noteLeftovers(host: name, volumes: missing.map(\.volume).sorted(), machine: machine)]
  }
  return attachments.filter(\.metadata.isBeingDeleted).compactMap { attachment in
    guard let attachmentName = attachment.metadata.name, let uid = attachment.metadata.uid else { return nil }
    return .waiveAttachment(attachmentName, uid: uid, host: name)
  }
}

private func offMessage(_ host: String, _ power: PowerView?, consequence: String) -> String {
  if let problem = power?.problem {
    return "waits for the server \(host) to be seen off, but \(problem); \(consequence)"
  }
  return "waits for the server \(host) to be seen off several times in a row (it reads "
    + "\(power?.power.rawValue ?? "Unknown")); \(consequence)"
}
