package import GRPCCore
package import Logging
package import OPI
package import SwiftProtobuf
package import Telemetry

/// The resources of the storage API, kept in step with a target.
///
/// What is asked for is written down before the target is changed, and what is shown is read back from the target. So
/// the bridge, the target and the machine may die at any moment: what the records say is made good afterwards.
package actor Bridge {
  let target: Target
  let store: RecordStore
  private var records: [String: Record]
  private let changes = Turnstile(limit: 1024)
  private let logger: Logger
  private let wantsRepair: @Sendable () -> Void
  private let repairs: CounterFamily
  private let recorded: GaugeFamily

  /// - Parameter wantsRepair: called when a call ended without it being known what the target did.
  package init(
    target: Target, store: RecordStore, registry: MetricsRegistry, logger: Logger,
    wantsRepair: @escaping @Sendable () -> Void
  ) throws {
    self.target = target
    self.store = store
    self.logger = logger
    self.wantsRepair = wantsRepair
    records = try store.load()
    repairs = registry.counter(
      "opi_bridge_repairs_total", help: "Resources that the target lacked, or had otherwise, and that were made good.",
      labels: ["collection"])
    recorded = registry.gauge("opi_bridge_resources", help: "Resources that are written down.")
    recorded.set(Double(records.count))
  }

  func scope() -> Scope { Scope(target: target, view: TargetView(target), records: records) }

  /// Runs a change alone, with errors as the caller gets them.
  nonisolated func changing<Value: Sendable>(
    _ body: @escaping @Sendable () async throws -> Value
  ) async throws -> Value {
    try await translated { try await self.changes.pass(body) }
  }

  // MARK: Creating

  package func create<R: Resource>(_ given: R, id: String, idField: String, parent: String = "") async throws -> R {
    var wanted = given
    let id = id.isEmpty ? Self.newID() : id
    wanted.name = try R.collection.name(id: id, parent: parent, field: idField)
    let secret = wanted.takeSecret()
    try wanted.normalize()
    let ready = wanted
    return try await changing { try await self.create(ready, secret) }
  }

  /// AIP-133: where the client gives no identifier, the service does.
  private static func newID() -> String {
    "opi-" + (0..<4).map { _ in String(UInt32.random(in: .min ... .max), radix: 36) }.joined()
  }

  private func create<R: Resource>(_ wanted: R, _ secret: [UInt8]) async throws -> R {
    let scope = scope()
    let parent = ResourceName.parent(of: wanted.name)
    if !parent.isEmpty, records[parent]?.phase != .present { throw RPCError.notFound(parent) }
    if let record = records[wanted.name], record.phase == .deleting {
      try await record.message.remove(scope)
      try await erase(record.name)
      await scope.view.invalidate()
    }
    let isNew = records[wanted.name] == nil
    // A creation that fails undoes what it did, and never what somebody else had there before.
    let wasThere = isNew ? try await wanted.isThere(scope) : true
    if let record = records[wanted.name] {
      // Asked again, as after an answer that was lost.
      guard record.message as? R == wanted, record.secret == secret else {
        throw RPCError.exists(wanted.name, "with other fields; read it, then update or delete it")
      }
    } else {
      try await checkFree(wanted)
      try await write(Record(phase: .present, message: wanted, secret: secret))
    }
    do {
      try await wanted.make(scope, secret: secret)
      await scope.view.invalidate()
      guard let made = try await wanted.read(scope) else {
        throw RPCError(code: .internalError, message: "\(wanted.name): the target accepted it and does not show it")
      }
      return made
    } catch {
      // What was there before the call stays, whatever the target says at the moment.
      if isNew { try await giveUp(wanted, wasThere: wasThere, scope, error) }
      throw error
    }
  }

  /// Two resources cannot be one block device of the target.
  private func checkFree<R: Resource>(_ wanted: R) async throws {
    guard let bdev = wanted.ownBdev else { return }
    if let other = records.values.first(where: { $0.message.ownBdev == bdev }) {
      throw RPCError.exists(wanted.name, "as \(other.name): both would be the block device '\(bdev)'; use another id")
    }
  }

  /// A creation that failed leaves nothing: neither a record nor half of the thing.
  private func giveUp<R: Resource>(_ wanted: R, wasThere: Bool, _ scope: Scope, _ error: any Error) async throws {
    guard await scope.view.isChanged, !wasThere else { return try await erase(wanted.name) }
    // It may have been made in part, or be made yet. The record says that it goes; what cannot be undone now is left to
    // the repair.
    try await write(Record(phase: .deleting, message: wanted))
    do {
      guard (error as? TargetError)?.isOpen != true else { return wantsRepair() }
      await scope.view.invalidate()
      try await wanted.remove(self.scope())
      try await erase(wanted.name)
    } catch {
      logger.warning("cannot undo", metadata: ["resource": "\(wanted.name)", "error": "\(Self.translate(error))"])
      wantsRepair()
    }
  }

  // MARK: Updating

  package func update<R: Resource>(
    _ given: R, mask: Google_Protobuf_FieldMask?, allowMissing: Bool
  ) async throws -> R {
    try R.collection.check(given.name)
    var patch = given
    let secret = patch.takeSecret()
    let ready = patch
    let paths = mask?.paths ?? []
    for path in paths where path != "*" && !R.isPathValid(path) {
      throw RPCError.invalid("update_mask", path, "is no field of \(R.protoMessageName)")
    }
    return try await changing { try await self.update(ready, secret, paths, allowMissing: allowMissing) }
  }

  private func update<R: Resource>(
    _ patch: R, _ secret: [UInt8], _ paths: [String], allowMissing: Bool
  ) async throws -> R {
    let scope = scope()
    guard let record = records[patch.name], record.phase == .present, let old = record.message as? R else {
      guard allowMissing else { throw RPCError.notFound(patch.name) }
      var wanted = patch
      try wanted.normalize()
      return try await create(wanted, secret)
    }
    // A key cannot be changed in place: the data are encrypted with it. It is never shown, so a whole message may lack it.
    let isKeyMeant = paths.contains("key") || (!secret.isEmpty && (paths.isEmpty || paths.contains("*")))
    guard !isKeyMeant || secret == record.secret else {
      throw RPCError.invalid("key", "(hidden)", "cannot be changed; delete \(old.name) and create it anew")
    }
    var wanted = try FieldMask.apply(patch, to: old, paths)
    wanted.name = old.name
    // Who reads, changes a field and writes all of it back sends what was read back as well. Of the fields that can be
    // changed, what is sent is meant, also where the target shows it by chance.
    if let shown = try await old.read(scope) {
      var meant = try FieldMask.withoutEchoes(wanted, of: shown, since: old)
      meant.takeMutableFields(from: wanted)
      wanted = meant
    }
    try wanted.normalize()
    var fixed = wanted
    fixed.takeMutableFields(from: old)
    if let field = try FieldMask.firstDifference(old, fixed) {
      throw RPCError(
        code: .invalidArgument,
        message: "\(field) of \(old.name) cannot be changed; delete the resource and create it anew")
    }
    // What is written down already is made all the same: somebody may have changed it at the target.
    if wanted != old { try await write(Record(phase: .present, message: wanted, secret: record.secret)) }
    do {
      try await wanted.make(scope, secret: record.secret)
    } catch {
      guard wanted != old else { throw error }
      try await write(record)
      if (error as? TargetError)?.isOpen != true { try? await old.make(self.scope(), secret: record.secret) }
      throw error
    }
    await scope.view.invalidate()
    guard let shown = try await wanted.read(scope) else { throw Self.awaitsRepair(wanted.name) }
    return shown
  }

  // MARK: Deleting

  package func delete<R: Resource>(_ kind: R.Type, _ name: String, allowMissing: Bool) async throws {
    try R.collection.check(name)
    try await changing { try await self.delete(kind, name, allowMissing) }
  }

  private func delete<R: Resource>(_ kind: R.Type, _ name: String, _ allowMissing: Bool) async throws {
    let scope = scope()
    guard let resource = try await find(kind, name, scope) else {
      guard allowMissing else { throw RPCError.notFound(name) }
      return
    }
    try await checkUnused(resource, scope)
    if let bdev = resource.ownBdev, records[name] == nil,
      let owner = records.values.first(where: { $0.message.ownBdev == bdev })
    {
      throw RPCError.precondition(name, "it is the block device of \(owner.name); delete that")
    }
    let before = records[name]
    // Without the key: nothing that goes needs it.
    if before != nil { try await write(Record(phase: .deleting, message: resource)) }
    do {
      try await resource.remove(scope)
    } catch {
      // What the target refused stays; what it may have done is finished by the repair.
      if let before {
        if (error as? TargetError)?.isOpen == true { wantsRepair() } else { try await write(before) }
      }
      throw error
    }
    if before != nil { try await erase(name) }
  }

  private func checkUnused<R: Resource>(_ resource: R, _ scope: Scope) async throws {
    for record in records.values where record.name != resource.name {
      if ResourceName.parent(of: record.name) == resource.name {
        throw RPCError.precondition(resource.name, "it has \(record.name); delete that first")
      }
      for reference in record.message.references {
        let isUse =
          reference == resource.name
          || resource.ownBdev.map { (try? scope.bdevName(reference)) == $0 } ?? false
        if isUse { throw RPCError.precondition(resource.name, "\(record.name) uses it; delete that first") }
      }
    }
    // What was made past the bridge counts too.
    guard let bdev = resource.ownBdev else { return }
    if let user = try await scope.user(of: bdev) {
      throw RPCError.precondition(resource.name, "\(user) uses it; remove that first")
    }
  }

  // MARK: Reading

  package func get<R: Resource>(_ kind: R.Type, _ name: String) async throws -> R {
    try R.collection.check(name)
    let scope = scope()
    return try await translated {
      guard let resource = try await self.find(kind, name, scope) else { throw RPCError.notFound(name) }
      return try await Self.show(resource, scope)
    }
  }

  /// A resource by name: what is recorded, or what the target has without a record.
  private func find<R: Resource>(_ kind: R.Type, _ name: String, _ scope: Scope) async throws -> R? {
    if let record = records[name] { return record.message as? R }
    return try await R.strangers(scope).first { $0.name == name }
  }

  private static func show<R: Resource>(_ resource: R, _ scope: Scope) async throws -> R {
    guard let shown = try await resource.read(scope) else { throw awaitsRepair(resource.name) }
    return shown
  }

  private static func awaitsRepair(_ name: String) -> RPCError {
    RPCError(code: .unavailable, message: "\(name): the target does not have it at the moment; it is being repaired")
  }

  package func list<R: Resource>(
    _ kind: R.Type, parent: String = "", size: Int32, token: String
  ) async throws -> (resources: [R], next: String) {
    if let above = R.collection.parent {
      guard !parent.isEmpty else { throw RPCError.missing("parent") }
      try ResourceCollection(above).check(parent, field: "parent")
      guard records[parent] != nil else { throw RPCError.notFound(parent) }
    }
    let key = R.collection.parent == nil ? R.collection.segment : "\(parent)/\(R.collection.segment)"
    let page = try Page(size: size, token: token, scope: key)
    let scope = scope()
    return try await translated {
      // Reading many at once is cheaper than one by one.
      _ = try await scope.view.bdevs()
      var found: [String: R] = [:]
      for record in scope.records.values where R.collection.contains(record.name) {
        guard R.collection.parent == nil || ResourceName.parent(of: record.name) == parent else { continue }
        found[record.name] = record.message as? R
      }
      for stranger in try await R.strangers(scope) where found[stranger.name] == nil {
        guard R.collection.parent == nil || ResourceName.parent(of: stranger.name) == parent else { continue }
        found[stranger.name] = stranger
      }
      let (names, next) = page.cut(Array(found.keys), scope: key)
      var resources: [R] = []
      for name in names {
        guard let resource = found[name] else { continue }
        // What the target lacks for the moment is in the list all the same, without what would be read back.
        resources.append(try await resource.read(scope) ?? resource)
      }
      return (resources, next)
    }
  }

  package func statistics<R: Resource>(_ kind: R.Type, _ name: String) async throws -> OPIVolumeStats {
    try R.collection.check(name)
    let scope = scope()
    return try await translated {
      guard let resource = try await self.find(kind, name, scope) else { throw RPCError.notFound(name) }
      return try await resource.statistics(scope)
    }
  }

  // MARK: Repairing

  /// Brings the target to what is written down. Returns what could not be made good.
  package func repair() async throws -> [String: RPCError] {
    try await changes.pass { await self.repairAll() }
  }

  private func repairAll() async -> [String: RPCError] {
    var failures: [String: RPCError] = [:]
    let deleting = sorted { $0.phase == .deleting }.reversed()
    for record in deleting {
      await attempt(record, &failures) { scope in
        try await record.message.remove(scope)
        try await self.erase(record.name)
      }
    }
    for record in sorted(where: { $0.phase == .present }) {
      await attempt(record, &failures) { scope in
        let wasThere = try await record.message.isThere(scope)
        try await record.message.make(scope, secret: record.secret)
        if !wasThere {
          self.repairs.increment(type(of: record.message).collection.segment)
          self.logger.notice("repaired", metadata: ["resource": "\(record.name)"])
        }
      }
    }
    return failures
  }

  private func attempt(
    _ record: Record, _ failures: inout [String: RPCError], _ body: (Scope) async throws -> Void
  ) async {
    do { try await body(scope()) } catch { failures[record.name] = Self.translate(error) }
  }

  private func sorted(where isWanted: (Record) -> Bool) -> [Record] {
    records.values.filter(isWanted).sorted {
      (type(of: $0.message).rank, $0.name) < (type(of: $1.message).rank, $1.name)
    }
  }

  // MARK: Records

  private func write(_ record: Record) async throws {
    try await store.write(record)
    records[record.name] = record
    recorded.set(Double(records.count))
  }

  private func erase(_ name: String) async throws {
    try await store.remove(name)
    records[name] = nil
    recorded.set(Double(records.count))
  }

  // MARK: Errors

  nonisolated func translated<Value: Sendable>(
    _ body: @Sendable () async throws -> Value
  ) async throws -> Value {
    do { return try await body() } catch { throw Self.translate(error) }
  }

  private static func translate(_ error: any Error) -> RPCError {
    switch error {
    case let error as RPCError: error
    case let error as TargetError: error.error
    case is CancellationError: RPCError(code: .cancelled, message: "the caller gave up")
    default: RPCError(code: .internalError, message: "\(error)")
    }
  }
}
