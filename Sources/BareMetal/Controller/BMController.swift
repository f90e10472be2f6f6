public import BMC
import IaaS
public import Kubernetes
public import Logging
import Reconciler
public import Telemetry

/// bm-controller: everything that happens to machines and hosts outside of the DPU.
public struct BMController: Sendable {
  public struct Configuration: Sendable {
    /// `HOST:PORT` for metrics and health; empty for none.
    public var metricsAddress = ""
    /// How long an operating system gets to shut down before the power is cut.
    public var shutdownGrace: Duration = .seconds(30)
    /// Machines worked on at the same time.
    public var machineWorkers = 16
    /// BMCs talked to at the same time; a dead one occupies one of them for the time of a time-out.
    public var bmcWorkers = 128
    /// How often the power of a server is read about which nothing is wished.
    public var powerPoll: Duration = .seconds(30)
    /// Who this process is in the election of a leader; nil makes a name that is used once.
    public var identity: String?
    /// Whether several of these may run, of which one leads.
    public var leaderElection = true
    /// How many machines may be leaving hosts that are drained, and when none may.
    public var evacuationsMax = 4
    public var evacuationTroublePercentMax = 25
    /// Whether SIGTERM and SIGINT end `run()`.
    public var handlesSignals = true

    public init() {}
  }

  private let client: KubernetesClient
  private let configuration: Configuration
  private let registry: MetricsRegistry
  private let logger: Logger
  private let makeBMC: @Sendable (BMCAddress, BMCCredentials, BMCTrust) throws -> any BMC
  private let releaseBMC: @Sendable (BMCAddress) async -> Void
  private let forgetRefusals: @Sendable (BMCAddress) -> Void

  /// - Parameters:
  ///   - makeBMC: Gives the client for a BMC, for example `BMCClientPool.client`.
  ///   - releaseBMC: Called when that client is needed no more, for example `BMCClientPool.remove`.
  ///   - forgetRefusals: Called when a refused account may be tried again, for example `BMCClientPool.forgetRefusals`.
  public init(
    client: KubernetesClient, configuration: Configuration, registry: MetricsRegistry, logger: Logger,
    makeBMC: @escaping @Sendable (BMCAddress, BMCCredentials, BMCTrust) throws -> any BMC,
    releaseBMC: @escaping @Sendable (BMCAddress) async -> Void = { _ in },
    forgetRefusals: @escaping @Sendable (BMCAddress) -> Void = { _ in }
  ) {
    self.client = client
    self.configuration = configuration
    self.registry = registry
    self.logger = logger
    self.makeBMC = makeBMC
    self.releaseBMC = releaseBMC
    self.forgetRefusals = forgetRefusals
  }

  /// Runs until it is told to stop, or the task is cancelled.
  public func run() async throws {
    var settings = Manager.Configuration(metricsAddress: configuration.metricsAddress)
    settings.handlesSignals = configuration.handlesSignals
    if configuration.leaderElection {
      var election = LeaderElection(name: "bm-controller", namespace: Names.systemNamespace)
      if let identity = configuration.identity { election.identity = identity }
      settings.leaderElection = election
    }
    let manager = Manager(client: client, configuration: settings, registry: registry, logger: logger)
    let caches = ControllerCaches(client: client, logger: logger, registry: registry)
    manager.add(caches.machines)
    manager.add(caches.hosts)
    manager.add(caches.claims)
    manager.add(caches.persistentVolumes)
    manager.add(caches.attachments)
    manager.add(caches.bootData)
    manager.add(caches.migrations)
    let recorder = EventRecorder(client: client, component: "bm-controller", logger: logger, registry: registry)
    manager.add(recorder)

    let machineQueue = WorkQueue(name: "machines", registry: registry)
    let hostQueue = WorkQueue(name: "hosts", registry: registry)
    let powerQueue = WorkQueue(name: "power", registry: registry)
    let migrationQueue = WorkQueue(name: "migrations", registry: registry)
    let drainQueue = WorkQueue(name: "drains", registry: registry)
    let client = client
    let power = PowerService(
      findHost: { caches.hosts.get(name: $0) },
      readSecret: { try await client.get(Secret.self, name: $0, namespace: $1) },
      makeBMC: makeBMC, releaseBMC: releaseBMC, forgetRefusals: forgetRefusals,
      tell: { name, event in
        guard let host = caches.hosts.get(name: name) else { return }
        recorder.event(regarding: host, type: event.type, reason: event.reason, message: event.message)
      },
      limits: powerLimits, logger: logger,
      wake: { powerQueue.add(ObjectKey(name: $0)) },
      changed: { host in
        hostQueue.add(ObjectKey(name: host))
        for key in caches.machines(on: host) { machineQueue.add(key) }
        for migration in caches.openMigrations() { migrationQueue.add(migration.key) }
      })
    manager.beforeLeading { power.startOver() }
    let cluster = KubernetesCluster(client: client, caches: caches)
    let executor = StepExecutor(cluster: cluster, logger: logger, setPower: { power.want($0, $1) })
    let liveness = HandlerLiveness(client: client, logger: logger)
    manager.add(name: "liveness of handlers", scope: .leader) {
      try await liveness.run { hostQueue.add(ObjectKey(name: $0)) }
    }
    let life = LifeService(caches: caches, client: client, events: recorder, registry: registry, logger: logger)
    manager.add(name: "caches of machine snapshots", scope: .always) { try await life.watch() }
    manager.add(name: "machine snapshots", scope: .leader) { try await life.work() }
    let metrics = MachineMetrics(registry: registry)
    feed(migrations: migrationQueue, drains: drainQueue, machines: machineQueue, from: caches)
    feed(machines: machineQueue, hosts: hostQueue, power: powerQueue, from: caches, metrics: metrics)

    let overdue = OverdueMachines(registry: registry)
    caches.machines.onChange { change in
      switch change {
      case .added(let machine), .updated(_, let machine):
        let phase = machine.metadata.isBeingDeleted ? .deleting : machine.status?.phase ?? .pending
        overdue.observe(machine.key, phase)
      case .deleted(let machine): overdue.observe(machine.key, nil)
      }
    }
    manager.add(name: "phases' limits", scope: .always) { try await overdue.run() }
    manager.add(
      Controller(
        name: "machines",
        reconciler: MachineReconciler(
          caches: caches, cluster: cluster, client: client, executor: executor, power: { power.view($0) },
          events: recorder, metrics: metrics, shutdownGrace: configuration.shutdownGrace, logger: logger),
        queue: machineQueue, workers: configuration.machineWorkers, logger: logger, registry: registry))
    manager.add(
      Controller(
        name: "hosts",
        reconciler: HostReconciler(
          caches: caches, cluster: cluster, executor: executor, power: power, liveness: liveness, events: recorder,
          logger: logger),
        queue: hostQueue, workers: 8, logger: logger, registry: registry))
    manager.add(
      Controller(
        name: "migrations",
        reconciler: MigrationReconciler(
          caches: caches, cluster: cluster, power: { power.view($0) }, events: recorder,
          metrics: MigrationMetrics(registry: registry), logger: logger),
        queue: migrationQueue, workers: 4, logger: logger, registry: registry))
    var drainLimits = DrainLimits()
    drainLimits.parallelMax = configuration.evacuationsMax
    drainLimits.troublePercentMax = configuration.evacuationTroublePercentMax
    manager.add(
      Controller(
        name: "drains",
        reconciler: DrainReconciler(
          caches: caches, cluster: cluster, events: recorder, limits: drainLimits, logger: logger),
        queue: drainQueue, workers: 1, logger: logger, registry: registry))
    manager.add(
      Controller(
        name: "power", reconciler: power, queue: powerQueue, workers: configuration.bmcWorkers,
        timeLimit: PowerService.timeLimit, logger: logger, registry: registry))
    try await manager.run()
  }

  private var powerLimits: PowerService.Limits {
    var limits = PowerService.Limits()
    limits.poll = configuration.powerPoll
    limits.freshness = max(limits.freshness, configuration.powerPoll * 2)
    return limits
  }

  /// Who has to look when what changes.
  private func feed(
    machines: WorkQueue, hosts: WorkQueue, power: WorkQueue, from caches: ControllerCaches, metrics: MachineMetrics
  ) {
    caches.machines.feed(machines)
    caches.machines.onChange { change in
      switch change {
      case .added(let machine), .updated(_, let machine): metrics.seen(machine)
      case .deleted(let machine):
        metrics.forget(machine.key)
        // A machine that went by force may have left its claim behind, also one that its status does not tell yet.
        let held = caches.hosts(heldBy: machine.metadata.uid ?? "").compactMap(\.metadata.name)
        for host in Set(held + [machine.status?.host].compactMap { $0 }) { hosts.add(ObjectKey(name: host)) }
      }
    }
    // Who asks for the same addresses is told, also when it is over.
    caches.machines.onChange { change in
      let specs: [BareMetalMachine.Spec]
      switch change {
      case .added(let machine), .deleted(let machine): specs = [machine.spec]
      case .updated(let old, let new): specs = old.spec.interfaces == new.spec.interfaces ? [] : [old.spec, new.spec]
      }
      for address in Set(specs.flatMap(\.askedAddresses)) {
        for rival in caches.machines(asking: address) { machines.add(rival.key) }
      }
    }
    caches.claims.feed(machines) { claim in
      caches.machines.byIndex(ControllerCaches.Index.claim, claim.key.description).map(\.key)
    }
    caches.persistentVolumes.feed(machines) { volume in caches.machines(using: volume) }
    caches.attachments.feed(machines) { attachment in
      // Whoever waits for the volume is told as well that it is free.
      let waiting = caches.persistentVolumes.get(name: attachment.volume).map { caches.machines(using: $0) } ?? []
      return Array(Set(waiting + (attachment.machineKey.map { [$0] } ?? [])))
    }
    caches.attachments.feed(hosts) { attachment in attachment.host.map { [ObjectKey(name: $0)] } ?? [] }
    caches.bootData.feed(machines) { secret in
      let parts = (secret.metadata.annotations?[Names.machineAnnotation] ?? "").split(separator: "/", maxSplits: 1)
      return parts.count == 2 ? [ObjectKey(namespace: String(parts[0]), name: String(parts[1]))] : []
    }
    caches.bootData.feed(hosts) { secret in
      secret.metadata.labels?[Names.hostLabel].map { [ObjectKey(name: $0)] } ?? []
    }
    caches.hosts.feed(hosts)
    caches.hosts.feed(
      power,
      isRelevant: { PowerService.asksForReading(from: $0, to: $1) }
    ) { [$0.key] }
    caches.hosts.feed(machines) { host in
      if caches.hosts.get(host.key) == nil {
        // Whoever has something there is told, even where the machine is no more.
        let left = caches.attachments(onHost: host.key.name).compactMap(\.machineKey)
        return left + caches.machines(on: host.key.name)
      }
      if let claim = host.status?.claim { return [ObjectKey(namespace: claim.namespace, name: claim.name)] }
      return caches.machines(on: host.key.name)
    }
    caches.hosts.onChange { change in
      let waiting = { caches.machines.byIndex(ControllerCaches.Index.waiting, "waiting") }
      var old: BareMetalHost?
      switch change {
      case .updated(let before, _): old = before
      case .added(let host), .deleted(let host):
        // Who names it is told that it is there now, or not any more.
        for machine in waiting() where machine.spec.hostName == host.key.name { machines.add(machine.key) }
      }
      switch change {
      case .added(let host), .updated(_, let host):
        guard Scheduler.isInviting(host, before: old) else { return }
        for key in Scheduler.invited(waiting(), to: host) { machines.add(key) }
      case .deleted: break
      }
    }
  }
}

extension BMController {
  /// Migrations look at their machines and at the hosts; machines at their migrations.
  private func feed(migrations: WorkQueue, drains: WorkQueue, machines: WorkQueue, from caches: ControllerCaches) {
    caches.migrations.feed(migrations)
    // Others of the same machine wait for their turn.
    caches.migrations.feed(migrations) { migration in
      caches.migrations.byIndex(ControllerCaches.Index.machine, migration.machineKey.description).map(\.key)
    }
    caches.migrations.feed(machines) { [$0.machineKey] }
    caches.machines.feed(migrations) { machine in
      caches.migrations.byIndex(ControllerCaches.Index.machine, machine.key.description).filter(\.isOpen).map(\.key)
    }
    caches.hosts.feed(migrations) { _ in caches.openMigrations().map(\.key) }
    caches.hosts.feed(drains) { host in
      let conditions = host.status?.conditions ?? []
      let isMeant = host.spec.drain || host.spec.powerCut
      return isMeant || conditions.condition(BareMetalHost.ConditionType.drained) != nil ? [host.key] : []
    }
    // One that ends makes room for another.
    caches.migrations.feed(drains) { migration in
      guard migration.metadata.labels?[Names.evacuatedHostLabel] != nil else { return [] }
      return caches.hosts.byIndex(ControllerCaches.Index.drained, ControllerCaches.Index.drained).map(\.key)
    }
  }
}

extension BareMetalMachineMigration {
  /// The machine that it names.
  package var machineKey: ObjectKey { ObjectKey(namespace: metadata.namespace, name: spec.machineName) }
}

extension ControllerCaches {
  /// The machines whose specs name the claim that a volume is bound to.
  func machines(using volume: PersistentVolume) -> [ObjectKey] {
    guard let claim = volume.spec?.claimRef, let name = claim.name else { return [] }
    return machines.byIndex(Index.claim, ObjectKey(namespace: claim.namespace, name: name).description).map(\.key)
  }

  /// The machines that have to do with a host: its holder, and those that believe to be on it.
  func machines(on host: String) -> [ObjectKey] {
    var keys = Set(machines.byIndex(Index.host, host).map(\.key))
    if let claim = hosts.get(name: host)?.status?.claim {
      keys.insert(ObjectKey(namespace: claim.namespace, name: claim.name))
    }
    return keys.sorted()
  }
}
