import IaaS
package import Kubernetes

/// What a machine that is no more has left on hosts that are no more either: both were removed by force, and nobody
/// else looks there. An attachment is the record by which the remainder is collected.
///
/// bm-handler lets an attachment go only when its function is gone, so that the volume is free only then.
/// - Parameters:
///   - uid: The machine that has this name now, as far as known.
///   - attachments: Those that were made for a machine with this name, whatever its UID.
package func leftBehind(
  by key: ObjectKey, uid: String?, attachments: [VolumeAttachment], cluster: any Cluster
) async throws -> [MachineStep] {
  let candidates = attachments.filter {
    $0.machineKey == key && $0.machineUID != uid && !$0.metadata.isBeingDeleted
  }
  guard !candidates.isEmpty else { return [] }
  // Caches may be behind: what counts is what the API server has.
  let living = try await found { try await cluster.machine(key) }?.metadata.uid
  var steps: [MachineStep] = []
  for attachment in candidates where attachment.machineUID != living {
    guard let name = attachment.metadata.name, let uid = attachment.metadata.uid else { continue }
    // Where the host is there, its own reconciler collects what nobody owns, after the server was seen off.
    if let host = attachment.host, try await found({ try await cluster.host(host) }) != nil { continue }
    steps.append(.deleteAttachment(name, uid: uid))
  }
  return steps
}

private func found<T>(_ get: () async throws -> T) async throws -> T? {
  do {
    return try await get()
  } catch let error as KubernetesError where error.code == .notFound {
    return nil
  }
}
