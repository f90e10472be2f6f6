import Dispatch
import Glibc
import JSON
import Logging

extension Inventory {
  /// EINVAL where the subsystem is absent.
  func requireSubsystem(_ nqn: String, _ operation: String) throws(SoftDPUError) -> NVMfTarget.Subsystem {
    guard let subsystem = nvmf.subsystem(nqn) else { throw .system(EINVAL, "\(operation) \(nqn)") }
    return subsystem
  }

  /// EEXIST where the transport is there already.
  func createTransport(_ transport: NVMfTarget.Transport) throws(SoftDPUError) {
    guard nvmf.transport == nil else { throw .system(EEXIST, "create transport TCP") }
    nvmf.change { $0.transport = transport }
    do throws(SoftDPUError) {
      try record(.add(transport.creation))
    } catch {
      nvmf.change { $0.transport = nil }
      throw error
    }
  }

  // MARK: Subsystems

  func createSubsystem(_ subsystem: NVMfTarget.Subsystem) throws(SoftDPUError) {
    let nqn = subsystem.nqn
    let operation = "create subsystem \(nqn)"
    guard Inventory.isNQN(nqn) else {
      throw SoftDPUError(
        code: .invalid, operation: operation,
        message: "an NQN is nqn.YEAR-MONTH.DOMAIN:NAME, or nqn.2014-08.org.nvmexpress:uuid:UUID, of 223 bytes at most")
    }
    guard nvmf.subsystem(nqn) == nil, nqn != NVMe.discoveryNQN else { throw .system(EEXIST, operation) }
    nvmf.change { state in
      state.subsystems[nqn] = subsystem
      state.order.append(nqn)
    }
    do throws(SoftDPUError) {
      try record(.add(subsystem.creation))
    } catch {
      nvmf.change { state in
        state.subsystems[nqn] = nil
        state.order.removeAll { $0 == nqn }
      }
      throw error
    }
    logger.info("subsystem created", metadata: ["nqn": "\(nqn)"])
  }

  /// NVMe Base 1.4, section 7.9.
  static func isNQN(_ text: String) -> Bool {
    guard text.utf8.count <= 223, text.utf8.allSatisfy({ $0 > 0x20 && $0 != 0x7F }),
      let rest = text.dropPrefix("nqn.")
    else { return false }
    let parts = rest.split(separator: ":", maxSplits: 1, omittingEmptySubsequences: false)
    let date = parts[0].prefix(7)
    return parts.count == 2 && !parts[1].isEmpty && date.count == 7 && date.prefix(4).allSatisfy(\.isNumber)
      && date.dropFirst(4).first == "-" && date.suffix(2).allSatisfy(\.isNumber)
      && parts[0].dropFirst(7).first == "." && parts[0].count > 8
  }

  /// Ends the subsystem's connections, and calls `done` when nothing uses its devices any more.
  func deleteSubsystem(_ nqn: String, _ done: @escaping @Sendable (Result<Void, SoftDPUError>) -> Void) {
    guard let subsystem = nvmf.subsystem(nqn) else { return done(.failure(.system(EINVAL, "delete subsystem \(nqn)"))) }
    let position = nvmf.change { state -> Int in
      state.subsystems[nqn] = nil
      let position = state.order.firstIndex(of: nqn) ?? state.order.count
      state.order.removeAll { $0 == nqn }
      state.controllers.forgetLast(of: nqn)
      return position
    }
    do throws(SoftDPUError) {
      try record(subsystem.calls.map { .remove(key: $0.key) })
    } catch {
      nvmf.change { state in
        state.subsystems[nqn] = subsystem
        state.order.insert(nqn, at: min(position, state.order.count))
      }
      return done(.failure(error))
    }
    disconnect(subsystem) { _ in true }
    detach(subsystem, Array(subsystem.namespaces.values)) { [self] in
      let group = DispatchGroup()
      for listener in subsystem.listeners {
        group.enter()
        closeIfUnused(listener) { group.leave() }
      }
      group.notify(queue: .global()) { [self] in
        logger.info("subsystem deleted", metadata: ["nqn": "\(nqn)"])
        done(.success(()))
      }
    }
  }

  /// Ends the connections of those controllers of a subsystem that match.
  private func disconnect(
    _ subsystem: NVMfTarget.Subsystem, _ matches: @escaping @Sendable (NVMfController) -> Bool
  ) {
    nvmf.reactor.post { [nvmf] in
      for controller in nvmf.controllers where controller.subsystemNQN == subsystem.nqn && matches(controller) {
        controller.admin.close("the target ends it")
      }
    }
  }

  // MARK: Namespaces

  /// Shows a device as a namespace. The number that was chosen.
  func addNamespace(
    _ nqn: String, device name: String, id wanted: UInt32?, identity: NVMfTarget.NamespaceIdentity
  ) throws(SoftDPUError) -> UInt32 {
    let operation = "add a namespace to \(nqn)"
    let subsystem = try requireSubsystem(nqn, "add a namespace to")
    guard let device = device(name) else { throw .system(ENODEV, operation) }
    let free = (1...max(1, subsystem.maximumNamespaces)).first { subsystem.namespaces[$0] == nil }
    guard let id = wanted ?? free, id > 0, id <= subsystem.maximumNamespaces, subsystem.namespaces[id] == nil else {
      throw .system(EINVAL, operation)
    }
    guard let namespace = NVMfTarget.Namespace(id: id, device: device, identity: identity) else {
      throw .system(EINVAL, operation)
    }
    let nvmf = nvmf
    try device.open(
      namespace.owner,
      BlockDevice.User(
        description: "namespace \(id) of \(nqn)", isExclusive: false,
        onResize: { _ in nvmf.noteChange(nqn, id) }))
    nvmf.change { $0.subsystems[nqn]?.namespaces[id] = namespace }
    do throws(SoftDPUError) {
      try record(.add(namespace.creation(nqn)))
    } catch {
      nvmf.change { $0.subsystems[nqn]?.namespaces[id] = nil }
      device.close(namespace.owner)
      throw error
    }
    nvmf.reactor.post { subsystem.table.set(id, device) }
    nvmf.noteChange(nqn, id)
    logger.info("namespace added", metadata: ["nqn": "\(nqn)", "nsid": "\(id)", "bdev": "\(device.name)"])
    return id
  }

  func removeNamespace(
    _ nqn: String, _ id: UInt32, _ done: @escaping @Sendable (Result<Void, SoftDPUError>) -> Void
  ) {
    guard let subsystem = nvmf.subsystem(nqn), let namespace = subsystem.namespaces[id] else {
      return done(.failure(.system(EINVAL, "remove namespace \(id) of \(nqn)")))
    }
    nvmf.change { $0.subsystems[nqn]?.namespaces[id] = nil }
    do throws(SoftDPUError) {
      try record(.remove(key: namespace.creation(nqn).key))
    } catch {
      nvmf.change { $0.subsystems[nqn]?.namespaces[id] = namespace }
      return done(.failure(error))
    }
    nvmf.noteChange(nqn, id)
    detach(subsystem, [namespace]) { [self] in
      logger.info("namespace removed", metadata: ["nqn": "\(nqn)", "nsid": "\(id)"])
      done(.success(()))
    }
  }

  /// Takes devices out of a subsystem's table, and lets go of them when their last request is back.
  private func detach(
    _ subsystem: NVMfTarget.Subsystem, _ namespaces: [NVMfTarget.Namespace], _ then: @escaping @Sendable () -> Void
  ) {
    let ids = namespaces.map(\.id)
    nvmf.reactor.post { [self] in
      for id in ids { subsystem.table.set(id, nil) }
      waitForIdle(subsystem.table, ids) {
        for namespace in namespaces { namespace.device.close(namespace.owner) }
        then()
      }
    }
  }

  private func waitForIdle(_ table: NamespaceTable, _ ids: [UInt32], _ then: @escaping @Sendable () -> Void) {
    if ids.allSatisfy({ table.isIdle($0) }) { return DispatchQueue.global().async(execute: then) }
    DispatchQueue.global().asyncAfter(deadline: .now() + .milliseconds(5)) { [self] in
      nvmf.reactor.post { [self] in waitForIdle(table, ids, then) }
    }
  }

  // MARK: Listeners and hosts

  func addListener(_ nqn: String, _ place: NVMfTarget.ListenAddress) throws(SoftDPUError) {
    let operation = "listen for \(nqn) at \(place.address):\(place.port)"
    let subsystem = try requireSubsystem(nqn, "listen for")
    guard nvmf.transport != nil else {
      throw SoftDPUError(code: .invalid, operation: operation, message: "call nvmf_create_transport first")
    }
    guard !subsystem.listeners.contains(place) else { throw .system(EEXIST, operation) }
    let isNew = nvmf.change { $0.listeners[place] == nil }
    if isNew {
      let listener = try NVMfListener(place, target: nvmf)
      nvmf.change { $0.listeners[place] = listener }
    }
    nvmf.change { $0.subsystems[nqn]?.listeners.append(place) }
    do throws(SoftDPUError) {
      try record(.add(place.creation(nqn)))
    } catch {
      nvmf.change { $0.subsystems[nqn]?.listeners.removeAll { $0 == place } }
      closeIfUnused(place)
      throw error
    }
    logger.info("listening", metadata: ["nqn": "\(nqn)", "address": "\(place.address):\(place.port)"])
  }

  /// `done` is called when nobody can connect there any more.
  func removeListener(
    _ nqn: String, _ place: NVMfTarget.ListenAddress, _ done: @escaping @Sendable () -> Void
  ) throws(SoftDPUError) {
    let subsystem = try requireSubsystem(nqn, "stop listening for")
    guard subsystem.listeners.contains(place) else {
      throw .system(ENOENT, "stop listening for \(nqn) at \(place.address):\(place.port)")
    }
    nvmf.change { $0.subsystems[nqn]?.listeners.removeAll { $0 == place } }
    do throws(SoftDPUError) {
      try record(.remove(key: place.creation(nqn).key))
    } catch {
      nvmf.change { $0.subsystems[nqn]?.listeners.append(place) }
      throw error
    }
    disconnect(subsystem) { $0.admin.place == place }
    closeIfUnused(place, done)
  }

  /// Ends a listener that no subsystem names any more.
  private func closeIfUnused(_ place: NVMfTarget.ListenAddress, _ done: @escaping @Sendable () -> Void = {}) {
    let unused = nvmf.change { state -> NVMfListener? in
      guard !state.subsystems.values.contains(where: { $0.listeners.contains(place) }) else { return nil }
      return state.listeners.removeValue(forKey: place)
    }
    guard let unused else { return done() }
    // The closure keeps the listener until its last connection is gone.
    unused.close { [unused] in
      _ = unused
      done()
    }
  }

  func changeHosts(
    _ nqn: String, _ body: (inout NVMfTarget.Subsystem) throws(SoftDPUError) -> Void
  ) throws(SoftDPUError) {
    let before = try requireSubsystem(nqn, "change the hosts of")
    var after = before
    try body(&after)
    let (hosts, isOpen) = (after.hosts, after.allowsAnyHost)
    nvmf.change { state in
      state.subsystems[nqn]?.hosts = hosts
      state.subsystems[nqn]?.allowsAnyHost = isOpen
    }
    do throws(SoftDPUError) {
      var changes: [SavedConfiguration.Change] = []
      for host in before.hosts where !hosts.contains(host) {
        changes.append(.remove(key: ConfigurationCall.key(host: host, of: nqn)))
      }
      for host in hosts where !before.hosts.contains(host) { changes.append(.add(after.creation(host: host))) }
      if isOpen != before.allowsAnyHost { changes.append(.update(after.creation)) }
      try record(changes)
    } catch {
      nvmf.change { state in
        state.subsystems[nqn]?.hosts = before.hosts
        state.subsystems[nqn]?.allowsAnyHost = before.allowsAnyHost
      }
      throw error
    }
    let allowed = after
    disconnect(after) { !allowed.allows($0.hostNQN) }
  }

  // MARK: Configuration

  var nvmfConfiguration: [ConfigurationCall] {
    guard let transport = nvmf.transport else { return [] }
    return [transport.creation] + nvmf.subsystems.flatMap(\.calls)
  }
}

extension NVMfTarget.Transport {
  /// The call that makes it again after a restart.
  var creation: ConfigurationCall {
    ConfigurationCall(
      method: "nvmf_create_transport",
      parameters: [
        "trtype": "TCP", "max_queue_depth": .integer(Int64(queueDepth)),
        "max_io_qpairs_per_ctrlr": .integer(Int64(maximumQueues)),
        "in_capsule_data_size": .integer(Int64(inCapsuleLength)), "max_io_size": .integer(Int64(maximumTransfer)),
        "c2h_success": .bool(sendsSuccess),
      ])
  }
}

extension NVMfTarget.Subsystem {
  /// The call that makes it again after a restart, without what it has.
  var creation: ConfigurationCall {
    ConfigurationCall(
      method: "nvmf_create_subsystem",
      parameters: [
        "nqn": .string(nqn), "allow_any_host": .bool(allowsAnyHost), "serial_number": .string(serialNumber),
        "model_number": .string(modelNumber), "max_namespaces": .integer(Int64(maximumNamespaces)),
        "min_cntlid": .integer(Int64(controllerIDs.lowerBound)),
        "max_cntlid": .integer(Int64(controllerIDs.upperBound)),
      ])
  }

  func creation(host: String) -> ConfigurationCall {
    ConfigurationCall(
      method: "nvmf_subsystem_add_host", parameters: ["nqn": .string(nqn), "host": .string(host)])
  }

  /// The calls that make it again with all that it has.
  var calls: [ConfigurationCall] {
    [creation] + hosts.map(creation(host:))
      + namespaces.values.sorted { $0.id < $1.id }.map { $0.creation(nqn) } + listeners.map { $0.creation(nqn) }
  }
}

extension NVMfTarget {
  /// What a client gave for a namespace's identifiers; nil is derived from the device.
  struct NamespaceIdentity: Sendable, Hashable {
    var nguid: String?
    var eui64: String?
    var uuid: String?
  }

  /// Tells the hosts of a subsystem that a namespace changed.
  func noteChange(_ nqn: String, _ id: UInt32) {
    change { _ in }
    reactor.post { [self] in
      for controller in controllers where controller.subsystemNQN == nqn { controller.noteChange(id) }
    }
  }
}

extension NVMfTarget.Namespace {
  /// Nil where an identifier is none.
  init?(id: UInt32, device: BlockDevice, identity: NVMfTarget.NamespaceIdentity) {
    self.id = id
    self.device = device
    uuid = (identity.uuid ?? device.uuid).lowercased()
    guard let uuidBytes = UniqueID.bytes(uuid) else { return nil }
    // As SPDK: without one of its own, the globally unique number is the UUID.
    guard let nguid = identity.nguid.map(UniqueID.hexadecimal) ?? uuidBytes, nguid.count == 16,
      let eui64 = identity.eui64.map(UniqueID.hexadecimal) ?? [UInt8](repeating: 0, count: 8), eui64.count == 8
    else { return nil }
    self.nguid = nguid
    self.eui64 = eui64
    given = identity
  }

  func creation(_ nqn: String) -> ConfigurationCall {
    ConfigurationCall(
      method: "nvmf_subsystem_add_ns", parameters: ["nqn": .string(nqn), "namespace": parameters])
  }

  /// As `nvmf_subsystem_add_ns` takes it.
  var parameters: JSONValue {
    var value: JSONValue = [
      "nsid": .integer(Int64(id)), "bdev_name": .string(device.name), "uuid": .string(uuid),
    ]
    if let nguid = given.nguid { value["nguid"] = .string(nguid) }
    if let eui64 = given.eui64 { value["eui64"] = .string(eui64) }
    return value
  }
}

extension NVMfTarget.ListenAddress {
  func creation(_ nqn: String) -> ConfigurationCall {
    ConfigurationCall(
      method: "nvmf_subsystem_add_listener", parameters: ["nqn": .string(nqn), "listen_address": json])
  }

  var json: JSONValue {
    [
      "trtype": "TCP", "adrfam": .string(isIPv6 ? "IPv6" : "IPv4"), "traddr": .string(address),
      "trsvcid": .string("\(port)"),
    ]
  }
}
