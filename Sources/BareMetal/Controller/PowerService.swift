package import BMC
package import IaaS
package import Kubernetes
package import Logging
package import Reconciler
import Synchronization

/// Talks to the BMCs: gentle polling, wishes about power, inventory. Keys are names of hosts.
///
/// One host at a time has at most one call under way, and no call holds up another host's: a dead BMC costs one worker
/// for the time of its time-out, and is asked more and more seldom.
package final class PowerService: Reconcile {
  package struct Limits: Sendable {
    package var tracker = PowerTracker.Limits()
    /// How often a server is looked at about which nothing is wished.
    package var poll: Duration = .seconds(30)
    /// How many such readings there are each second, at most: in a large fleet each server is looked at less often.
    ///
    /// Each is a connection with a handshake, some 3 ms of a core: open connections to a thousand BMCs would be memory at
    /// both ends. What asks for an early reading tells itself, see `asksForReading`.
    package var pollsPerSecond = 4.0
    /// For how long readings of off in a row are a proof.
    package var freshness: Duration = .seconds(60)
    package var inventoryEvery: Duration = .seconds(3600)
    /// How often the account of a BMC that answers is read again. It is read each time while the BMC does not.
    package var accountEvery: Duration = .seconds(300)
    package var retryMaximum: Duration = .seconds(300)
    /// The same while something waits for the BMC.
    package var retryMaximumWanted: Duration = .seconds(20)

    package init() {}
  }

  /// The time that a worker needs at most: a reading, and a command or an inventory, with something left for the secret.
  /// What is cancelled in the middle would start from the beginning for ever.
  package static let timeLimit: Duration = .seconds(240)

  private struct Entry {
    var tracker: PowerTracker
    /// As it was talked to last.
    var contact: BMCContact?
    /// The contact that the BMC last accepted. It is kept while a new account is not accepted.
    var proven: BMCContact?
    /// The account in the secret, where the BMC refused it and the one before is used; and what the BMC said.
    var refused: BMCCredentials?
    var refusal: String?
    /// The request to read everything anew that was acted on.
    var rescan: String?
    /// What the contact was made of, and when.
    var contactSpec: BareMetalHost.BMC?
    var contactAt: Duration?
    /// Why the BMC cannot be asked, and how often in a row it could not.
    var problem: String?
    var failures = 0
    /// Why the BMC, which answers, did not take the last command. No reading makes it go away.
    var commandProblem: String?
    var answered = false
    var hardware: BareMetalHost.Hardware?
    /// When the inventory was asked for last, with success or without.
    var inventoryAt: Duration?
  }

  package typealias MakeBMC = @Sendable (BMCAddress, BMCCredentials, BMCTrust) throws -> any BMC

  private let findHost: @Sendable (String) -> BareMetalHost?
  private let readSecret: @Sendable (_ name: String, _ namespace: String) async throws -> Secret
  private let makeBMC: MakeBMC
  private let releaseBMC: @Sendable (BMCAddress) async -> Void
  private let forgetRefusals: @Sendable (BMCAddress) -> Void
  private let tell: @Sendable (String, PlannedEvent) -> Void
  private let wake: @Sendable (String) -> Void
  private let limits: Limits
  private let logger: Logger
  private let changed: @Sendable (String) -> Void
  private let entries = Mutex<[String: Entry]>([:])
  private let start = ContinuousClock.now

  /// - Parameters:
  ///   - releaseBMC: Called when a BMC is not talked to any more, or with another account: sessions are few on a BMC.
  ///   - forgetRefusals: Called when an account that the BMC refused may be good by now.
  ///   - tell: Called with a host's name and something that people should know.
  ///   - wake: Called with a host's name when it is to be looked at soon.
  ///   - changed: Called with a host's name when something about its power or inventory is new.
  package init(
    findHost: @escaping @Sendable (String) -> BareMetalHost?,
    readSecret: @escaping @Sendable (_ name: String, _ namespace: String) async throws -> Secret,
    makeBMC: @escaping MakeBMC, releaseBMC: @escaping @Sendable (BMCAddress) async -> Void = { _ in },
    forgetRefusals: @escaping @Sendable (BMCAddress) -> Void = { _ in },
    tell: @escaping @Sendable (String, PlannedEvent) -> Void = { _, _ in }, limits: Limits = Limits(), logger: Logger,
    wake: @escaping @Sendable (String) -> Void, changed: @escaping @Sendable (String) -> Void
  ) {
    self.findHost = findHost
    self.readSecret = readSecret
    self.makeBMC = makeBMC
    self.releaseBMC = releaseBMC
    self.forgetRefusals = forgetRefusals
    self.tell = tell
    self.wake = wake
    self.limits = limits
    self.logger = logger
    self.changed = changed
  }

  /// Whether a change of a host is a reason to read its power now instead of at its turn: its BMC is another one, somebody
  /// asks for it, another machine holds it, which was told how the server was a while ago, or its guest has fallen
  /// silent, which may be because the server has no power.
  package static func asksForReading(from old: BareMetalHost, to new: BareMetalHost) -> Bool {
    func answers(_ host: BareMetalHost) -> Bool {
      host.status?.dpu?.interfaces?.contains { $0.reachable == true } ?? false
    }
    let holder = new.status?.claim?.uid
    return old.spec.bmc != new.spec.bmc || (holder != nil && holder != old.status?.claim?.uid)
      || old.metadata.annotations?[Names.rescanAnnotation] != new.metadata.annotations?[Names.rescanAnnotation]
      || (answers(old) && !answers(new))
  }

  private var now: Duration { start.duration(to: .now) }

  /// Wishes something about a host's power. The same wish again costs nothing.
  package func want(_ host: String, _ wish: PowerWish) {
    let isNew = entries.withLock { entries in
      var entry = entries[host] ?? Entry(tracker: PowerTracker(limits: limits.tracker))
      defer { entries[host] = entry }
      guard entry.tracker.want(wish) else { return false }
      entry.commandProblem = nil
      return true
    }
    if isNew { wake(host) }
  }

  /// Forgets what was wished and read: while this process did not lead, another one switched the power. To be called
  /// when leadership begins.
  package func startOver() {
    let hosts = entries.withLock { entries in
      entries = entries.mapValues { old in
        var entry = Entry(tracker: PowerTracker(limits: limits.tracker))
        entry.contact = old.contact
        entry.proven = old.proven
        entry.refused = old.refused
        entry.refusal = old.refusal
        entry.rescan = old.rescan
        // What hardware there is does not depend on who leads.
        entry.hardware = old.hardware
        entry.inventoryAt = old.hardware == nil ? nil : old.inventoryAt
        return entry
      }
      return entries.keys.sorted()
    }
    // The next look may be minutes away otherwise, and plans wait for it.
    for host in hosts { wake(host) }
  }

  /// A host's power as it was read back last.
  package func view(_ host: String) -> PowerView {
    let now = now
    return entries.withLock { entries in
      guard let entry = entries[host] else { return PowerView() }
      return view(entry, now, freshness: limits.freshness)
    }
  }

  /// - Parameter freshness: For how long readings of off are a proof; nil for ever.
  private func view(_ entry: Entry, _ now: Duration, freshness: Duration? = nil) -> PowerView {
    let freshness = freshness ?? .seconds(1 << 40)
    let wantsOn = entry.tracker.wish == .on
    guard entry.answered else { return PowerView(wantsOn: wantsOn, problem: entry.problem) }
    // What was read once is not known any more when the BMC has been silent for a while.
    let isKnown = entry.failures < 2
    // Nothing is to be done any more, so that nothing is in the way of it.
    let commandProblem = entry.tracker.wish == .observe ? nil : entry.commandProblem
    return PowerView(
      power: isKnown ? BareMetalHost.Power(entry.tracker.power) : .unknown,
      confirmedOff: isKnown && entry.tracker.isConfirmedOff(at: now, freshness: freshness),
      fencedOff: isKnown && entry.tracker.isFencedOff(at: now, freshness: freshness),
      wantsOn: wantsOn, problem: entry.problem ?? commandProblem,
      refusesCommand: entry.problem == nil && commandProblem != nil)
  }

  /// Whether the BMC answered since this process started, and the hardware that it told.
  package func facts(_ host: String) -> (answered: Bool, hardware: BareMetalHost.Hardware?) {
    entries.withLock { ($0[host]?.answered ?? false, $0[host]?.hardware) }
  }

  /// Why the account in the secret is not the one that is used; nil where it is.
  package func accountProblem(_ host: String) -> String? { entries.withLock { $0[host]?.refusal } }

  package func reconcile(_ key: ObjectKey) async throws -> ReconcileResult {
    try await attend(to: key.name).map { .requeue(after: $0) } ?? .done
  }

  /// Looks at a host's power, and does what is wished. Returns when to look again, nil where there is no such host.
  package func attend(to name: String) async throws -> Duration? {
    guard let host = findHost(name) else {
      let entry = entries.withLock { $0.removeValue(forKey: name) }
      if let contact = entry?.contact { await releaseBMC(contact.address) }
      return nil
    }
    takeRescan(of: host)
    do {
      let bmc = try await client(for: host)
      return try await look(at: host, bmc)
    } catch let error as KubernetesError {
      // The API server's trouble says nothing about the BMC: what was read of it stands, and the queue tries again.
      throw error
    } catch is CancellationError {
      throw CancellationError()
    } catch {
      if let again = reconsiderAccount(error, host: host) { return again }
      return note(error, host: host)
    }
  }

  /// Where somebody asks for it, everything is read anew, and a refused account is tried once more.
  private func takeRescan(of host: BareMetalHost) {
    guard let asked = host.metadata.annotations?[Names.rescanAnnotation] else { return }
    let address = entries.withLock { entries -> BMCAddress? in
      var entry = entries[host.key.name] ?? Entry(tracker: PowerTracker(limits: limits.tracker))
      guard entry.rescan != asked else { return nil }
      entry.rescan = asked
      entry.inventoryAt = nil
      entry.contactAt = nil
      entry.refused = nil
      entries[host.key.name] = entry
      return entry.contact?.address
    }
    if let address { forgetRefusals(address) }
  }

  /// What follows where an account is refused and there is another: a new one gives way to the one before, so that nobody
  /// is locked out; where that is refused as well, the accounts at the BMC have changed, and the new one is tried again.
  /// Returns when to look again, nil where there is no other account.
  private func reconsiderAccount(_ error: any Error, host: BareMetalHost) -> Duration? {
    guard isRefusedAccount(error) else { return nil }
    let name = host.metadata.name ?? ""
    let refusal = "the new account is refused, and the one before is used: \(describe(error, host: host))"
    let outcome = update(name) { entry, _ -> (isNews: Bool, forget: BMCAddress?)? in
      guard let contact = entry.contact, let proven = entry.proven, proven.address == contact.address else {
        return nil
      }
      if contact.credentials != proven.credentials {
        let isNews = entry.refusal == nil
        entry.refused = contact.credentials
        entry.refusal = refusal
        return (isNews, nil)
      }
      guard entry.refused != nil else { return nil }
      entry.refused = nil
      entry.refusal = nil
      entry.proven = nil
      return (false, contact.address)
    }
    guard let outcome else { return nil }
    if let address = outcome.forget { forgetRefusals(address) }
    if outcome.isNews { tell(name, PlannedEvent(type: .warning, reason: "NewAccountRefused", message: refusal)) }
    return .milliseconds(100)
  }

  /// The BMC answered: the account is good.
  private func noteAccepted(_ name: String) {
    let isRotated = update(name) { entry, _ -> Bool in
      guard let contact = entry.contact, entry.proven != contact else { return false }
      let before = entry.proven
      entry.proven = contact
      return before.map { $0.address == contact.address && $0.credentials != contact.credentials } ?? false
    }
    guard isRotated else { return }
    tell(name, PlannedEvent(type: .normal, reason: "AccountChanged", message: "the BMC took the new account"))
  }

  /// One reading, and the command that follows from it, if any. Returns when to look again.
  private func look(at host: BareMetalHost, _ bmc: any BMC) async throws -> Duration {
    let name = host.metadata.name ?? ""
    let state = try await bmc.power()
    noteAccepted(name)
    let move = update(name) { entry, now in
      entry.answered = true
      entry.failures = 0
      entry.problem = nil
      return entry.tracker.observe(state, at: now)
    }
    switch move {
    case .command(let action, let after):
      logger.info("power", metadata: ["host": "\(name)", "action": "\(action.rawValue)", "reads": "\(state.rawValue)"])
      do {
        try await bmc.setPower(action)
      } catch is CancellationError {
        // Whether it came through is not known.
        update(name) { entry, now in entry.tracker.failed(action, at: now, isTransient: true) }
        throw CancellationError()
      } catch {
        note(error, of: action, host: host)
        return max(after, .seconds(1))
      }
      update(name) { entry, _ in
        entry.tracker.accepted()
        entry.commandProblem = nil
      }
      return after
    case .read(let after):
      return after
    case .settled:
      try await readInventory(name, bmc)
      return pollInterval * Double.random(in: 0.9...1.1)
    }
  }

  private var pollInterval: Duration {
    let hosts = entries.withLock { $0.count }
    return max(limits.poll, .seconds(Double(hosts) / limits.pollsPerSecond))
  }

  private func readInventory(_ name: String, _ bmc: any BMC) async throws {
    // A failure, too, is not worth a repetition at every reading, in whichever way it ends.
    let isDue = update(name) { entry, now in
      if let at = entry.inventoryAt, now - at <= limits.inventoryEvery { return false }
      entry.inventoryAt = now
      return true
    }
    guard isDue else { return }
    do {
      let inventory = try await bmc.inventory()
      update(name) { entry, _ in entry.hardware = BareMetalHost.Hardware(inventory) }
    } catch let error as BMCError {
      logger.warning("cannot read the inventory", metadata: ["host": "\(name)", "error": "\(error)"])
    }
  }

  /// Changes a host's entry and tells where what others see of it is new.
  private func update<R>(_ name: String, _ body: (inout Entry, Duration) -> R) -> R {
    let now = now
    let (result, isNew) = entries.withLock { entries -> (R, Bool) in
      var entry = entries[name] ?? Entry(tracker: PowerTracker(limits: limits.tracker))
      // Where nothing is wished, nobody waits for a proof, and that an old one is fresh again is no news.
      let isWished = entry.tracker.wish != .observe
      let freshness = isWished ? limits.freshness : nil
      let before = (view(entry, now, freshness: freshness), entry.answered, entry.hardware, entry.refusal)
      let result = body(&entry, now)
      entries[name] = entry
      let after = (view(entry, now, freshness: freshness), entry.answered, entry.hardware, entry.refusal)
      return (result, before != after)
    }
    if isNew { changed(name) }
    return result
  }

  /// Remembers that a command failed. The BMC answers all the same: what is read of it goes on to count.
  private func note(_ error: any Error, of action: PowerAction, host: BareMetalHost) {
    let name = host.metadata.name ?? ""
    let isStateRefusal = (error as? BMCError)?.isStateRefusal == true
    let isTransient = (error as? BMCError)?.isTransient == true
    let problem = "the BMC did not take the command: \(describe(error, host: host))"
    let isNews = update(name) { entry, now in
      entry.tracker.failed(
        action, at: now, isStateRefusal: isStateRefusal, isTransient: isTransient,
        atLeast: (error as? BMCError)?.retryAfter ?? .zero)
      // Not every BMC can ask the operating system: then it goes the hard way, at the next reading. And some will not
      // turn off what is off, which is as it should be.
      if action == .gracefulShutdown || (action == .forceOff && isStateRefusal) { return false }
      defer { entry.commandProblem = problem }
      return entry.commandProblem != problem
    }
    logger.log(
      level: isNews ? .warning : .info, "power command failed",
      metadata: ["host": "\(name)", "action": "\(action.rawValue)", "error": "\(error)"])
  }

  private func isRefusedAccount(_ error: any Error) -> Bool {
    [.unauthorized, .lockedOut].contains((error as? BMCError)?.code)
  }

  private func describe(_ error: any Error, host: BareMetalHost) -> String {
    guard isRefusedAccount(error) else { return "\(error)" }
    let reference = host.spec.bmc.credentialsSecretRef
    return "\(error) (secret \(reference.namespace)/\(reference.name))"
  }

  /// Remembers that the BMC cannot be asked and says when to try again.
  private func note(_ error: any Error, host: BareMetalHost) -> Duration {
    let name = host.metadata.name ?? ""
    let problem = describe(error, host: host)
    let isRefused = isRefusedAccount(error)
    let (failures, wish) = update(name) { entry, _ in
      entry.failures += 1
      entry.problem = problem
      return (entry.failures, entry.tracker.wish)
    }
    if failures == 1 { logger.warning("BMC", metadata: ["host": "\(name)", "problem": "\(problem)"]) }
    let maximum = wish == .observe ? limits.retryMaximum : limits.retryMaximumWanted
    let backoff = min(.milliseconds(500) * (1 << min(failures, 12)), maximum)
    // Refused credentials are not sent again by the pool; what is looked at here is whether the secret changed.
    if isRefused {
      return min(max(backoff, .seconds(5)), .seconds(30))
    }
    let asked = (error as? BMCError)?.retryAfter ?? .zero
    return max(backoff, min(asked, limits.retryMaximum)) * Double.random(in: 0.9...1.1)
  }

  private func client(for host: BareMetalHost) async throws -> any BMC {
    let bmc = host.spec.bmc
    let key = host.metadata.name ?? ""
    // A secret for each reading of each server's power would be most of what a large fleet asks of the API server.
    let now = now
    let known = entries.withLock { entries -> BMCContact? in
      // Where an account is refused, its correction is waited for.
      guard let entry = entries[key], entry.problem == nil, entry.refusal == nil, entry.contactSpec == bmc,
        let at = entry.contactAt, now - at < limits.accountEvery
      else { return nil }
      return entry.contact
    }
    if let known { return try makeBMC(known.address, known.credentials, known.trust) }
    let wanted = try await BMCContact(of: host, readSecret: readSecret)
    let (before, contact) = update(key) { entry, now in
      entry.contactSpec = bmc
      // Spread, so that a fleet that was enrolled in a minute is not read again in a minute.
      entry.contactAt = now - limits.accountEvery * Double.random(in: 0...0.5)
      var contact = wanted
      if let proven = entry.proven, proven.address == wanted.address, entry.refused == wanted.credentials {
        contact.credentials = proven.credentials
      } else if let refused = entry.refused, refused != wanted.credentials {
        // Another content of the secret, or the old one again.
        entry.refused = nil
        entry.refusal = nil
      } else if entry.proven?.credentials == wanted.credentials {
        entry.refusal = nil
      }
      return (swap(&entry.contact, contact), contact)
    }
    if let before, before != contact { await releaseBMC(before.address) }
    return try makeBMC(contact.address, contact.credentials, contact.trust)
  }

  /// Puts a new value in the place of an old one, which is returned.
  private func swap<T>(_ place: inout T?, _ new: T) -> T? {
    defer { place = new }
    return place
  }
}

extension BareMetalHost.Hardware {
  package init(_ inventory: HardwareInventory) {
    self.init()
    health = inventory.health
    firmwareMode = inventory.firmwareMode
    thermal = inventory.thermal.map {
      Thermal(
        health: $0.health, warmestSensor: $0.warmestSensor, warmestCelsius: $0.warmestCelsius, fans: $0.fans)
    }
    consumedWatts = inventory.consumedWatts
    if !inventory.powerSupplies.isEmpty {
      powerSupplies = inventory.powerSupplies.map {
        PowerSupply(name: $0.name, health: $0.health, capacityWatts: $0.capacityWatts)
      }
    }
    manufacturer = inventory.manufacturer
    model = inventory.model
    serialNumber = inventory.serialNumber
    biosVersion = inventory.biosVersion
    bmcFirmwareVersion = inventory.bmcFirmwareVersion
    cpu = CPU(
      count: inventory.cpu.count, cores: inventory.cpu.cores, threads: inventory.cpu.threads,
      model: inventory.cpu.model, architecture: inventory.cpu.architecture)
    memoryMiB = inventory.memoryMiB
    nics = inventory.nics.map { NIC(name: $0.name, mac: $0.mac, speedMbps: $0.speedMbps) }
    drives = inventory.drives.map {
      Drive(name: $0.name, model: $0.model, serialNumber: $0.serialNumber, capacityBytes: $0.capacityBytes)
    }
  }
}
