import BareMetal
package import IaaS
import JSON
package import Kubernetes

/// migrate: the migration that is to be made. Pure.
package enum MigrateVerb {
  package enum Decision: Sendable, Hashable {
    case create(BareMetalMachineMigration)
    case unchanged(String)
  }

  /// - Parameter present: all migrations of the machine's namespace.
  /// - Throws: `APIFailure` 409 where the machine cannot be moved, or is being moved in another way.
  package static func decide(
    _ machine: BareMetalMachine, _ options: VerbOptions, present: [BareMetalMachineMigration], now: MicroTimestamp
  ) throws(APIFailure) -> Decision {
    let key = machine.key
    try options.check(
      key, uid: machine.metadata.uid, resourceVersion: machine.metadata.resourceVersion,
      isBeingDeleted: machine.metadata.isBeingDeleted)
    let name =
      if let request = options.requestID {
        BareMetalMachineMigration.name(machine: key.name, request: request)
      } else {
        BareMetalMachineMigration.name(machine: key.name, at: now)
      }
    let wanted = BareMetalMachineMigration(
      moving: machine, name: name, targetHost: options.targetHost, labels: options.hostLabels,
      graceSeconds: options.graceSeconds)
    if options.requestID != nil, let same = present.first(where: { $0.key.name == name }) {
      guard same.spec == wanted.spec, same.isOf(machine) else {
        throw .conflict(
          key.name,
          "the migration \(name) is there already, and is not what this request asks for; give another requestID")
      }
      return .unchanged("\(key.name) was asked this already: migration \(name) \(how(same))")
    }
    // What is over, or given up, stands in nobody's way.
    let open = present.filter { $0.machineKey == key && $0.isOpen }
    if let other = open.min(by: { $0.goesBefore($1) }) {
      guard other.spec == wanted.spec else {
        throw .conflict(
          key.name,
          "machine \(key) is being moved already: migration \(other.key.name) \(how(other)); wait for it, or delete it")
      }
      return .unchanged("\(key.name) is being moved already: migration \(other.key.name) \(how(other))")
    }
    guard let host = machine.status?.host, !host.isEmpty else {
      throw .conflict(
        key.name, "machine \(key) holds no host, so nothing is to be moved; where it starts is up to its spec")
    }
    if options.targetHost == host { return .unchanged("\(key.name) is on \(host) already") }
    return .create(wanted)
  }

  /// How far a migration is, in words.
  private static func how(_ migration: BareMetalMachineMigration) -> String {
    switch migration.status?.phase {
    case nil, .pending: "is waiting"
    case .succeeded: "has succeeded"
    case .failed: "has failed (\(migration.status?.message ?? "its status does not say why"))"
    case .some(let phase): "is under way (\(phase.rawValue))"
    }
  }
}

extension BareMetalMachineMigration {
  /// Whether it was made for this machine, and not for one that had its name before.
  fileprivate func isOf(_ machine: BareMetalMachine) -> Bool {
    if let uid = status?.machineUID { return uid == machine.metadata.uid }
    return metadata.ownerReferences?.contains { $0.uid == machine.metadata.uid } ?? false
  }
}

extension MachineStore {
  /// Makes the migration that is wanted. Where the same request came in at the same moment, it is looked at anew.
  func migrate(_ key: ObjectKey, _ options: VerbOptions) async throws -> Outcome {
    for _ in 0..<Self.attempts {
      let machine = try await machine(key)
      let present = try await attempt(key) {
        try await client.listAll(BareMetalMachineMigration.self, namespace: key.namespace).items
      }
      switch try MigrateVerb.decide(machine, options, present: present, now: .now()) {
      case .unchanged(let message): return Outcome(message, isChanged: false, uid: machine.metadata.uid)
      case .create(let migration):
        var query = [("fieldManager", Self.fieldManager)]
        if options.isDryRun { query.append(("dryRun", "All")) }
        do {
          _ = try await client.request(
            method: "POST", path: Self.migrations(in: key), query: query, body: try MergePatch.json(migration))
          let words = "\(key.name) moves by the migration \(migration.key.name)"
          return Outcome(
            options.isDryRun ? "\(words) (dry run)" : words, isChanged: !options.isDryRun, uid: machine.metadata.uid)
        } catch let error as KubernetesError {
          guard error.code == .alreadyExists else { throw APIFailure(error, machine: key.name) }
        }
      }
    }
    throw APIFailure.conflict(key.name, "others ask for moves of machine \(key) at the same time; try again")
  }

  private static func migrations(in key: ObjectKey) -> String {
    "/apis/\(BareMetalMachineMigration.definition.apiVersion)/namespaces/\(key.namespace ?? "")/"
      + BareMetalMachineMigration.definition.plural
  }
}
