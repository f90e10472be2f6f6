import BMC
import BareMetal
import Foundation
import IaaS
import Kubernetes
import Logging
import Synchronization
import Testing

/// A BMC on paper that can be told to fail.
final class PaperBMC: BMC {
  struct State {
    var power = PowerState.off
    var readError: BMCError?
    var commandError: BMCError?
    var commands: [PowerAction] = []
    var inventories = 0
    var inventoryIsCancelled = false
  }

  let state = Mutex(State())

  var commands: [PowerAction] { state.withLock { $0.commands } }

  func power() async throws -> PowerState {
    try state.withLock { state in
      if let error = state.readError { throw error }
      return state.power
    }
  }

  func setPower(_ action: PowerAction) async throws {
    try state.withLock { state in
      state.commands.append(action)
      if let error = state.commandError { throw error }
      state.power = action == .on ? .on : .off
    }
  }

  func inventory() async throws -> HardwareInventory {
    let isCancelled = state.withLock { state in
      state.inventories += 1
      return state.inventoryIsCancelled
    }
    if isCancelled { throw CancellationError() }
    return HardwareInventory()
  }

  func setBootOverride(_ override: BootOverride) async throws {}
}

@Suite("What becomes of wishes about power")
struct PowerServiceTests {
  @Test("A server is read out of turn when a machine gets it and when its guest falls silent, not for every report")
  func outOfTurn() {
    var host = BareMetalHost(
      metadata: ObjectMeta(name: "h"),
      spec: .init(bmc: .init(address: "redfish://b", credentialsSecretRef: .init(name: "s")), dpu: .init(node: "d")))
    host.status = BareMetalHost.Status()
    host.status?.dpu = .init()
    let interface = BareMetalHost.Interface(name: "eth0", mac: "02:00:00:00:00:01", address: nil)
    let changes: [(what: String, asks: Bool, change: (inout BareMetalHost) -> Void)] = [
      ("claimed", true, { $0.status?.claim = .init(namespace: "n", name: "m", uid: "u") }),
      ("read", false, { $0.status?.power = .on }),
      ("an interface", false, { $0.status?.dpu?.interfaces = [interface] }),
      ("answers", false, { $0.status?.dpu?.interfaces?[0].reachable = true }),
      ("silent", true, { $0.status?.dpu?.interfaces?[0].reachable = false }),
      ("answers again", false, { $0.status?.dpu?.interfaces?[0].reachable = true }),
      ("no interface", true, { $0.status?.dpu?.interfaces = nil }),
      ("another machine", true, { $0.status?.claim?.uid = "another" }),
      ("free: it was just seen off", false, { $0.status?.claim = nil }),
      ("rescan", true, { $0.metadata.annotations = [Names.rescanAnnotation: "now"] }),
      ("another BMC", true, { $0.spec.bmc.address = "redfish://c" }),
    ]
    for (what, asks, change) in changes {
      let before = host
      change(&host)
      #expect(PowerService.asksForReading(from: before, to: host) == asks, "\(what)")
    }
  }

  /// What the service told others.
  final class Log: Sendable {
    let secretNamespace = Mutex(Names.systemNamespace)
    let secretsRead = Mutex(0)
    let changed = Mutex<[String]>([])
    let woken = Mutex<[String]>([])
    let secretError = Mutex<KubernetesError?>(nil)
    let password = Mutex("p")
    let hostIsGone = Mutex(false)
    let forgotten = Mutex(0)
    let events = Mutex<[String]>([])
    /// Passwords that the BMC takes; nil for any.
    let accepted = Mutex<Set<String>?>(nil)
    let tried = Mutex<[String]>([])
    let released = Mutex<[String]>([])
    var changes: Int { changed.withLock { $0.count } }
  }

  let bmc = PaperBMC()
  let log = Log()

  func service(_ limits: PowerService.Limits = .init(), accountEvery: Duration = .zero) -> PowerService {
    let (bmc, log) = (bmc, log)
    var limits = limits
    limits.accountEvery = accountEvery
    return PowerService(
      findHost: { name in
        guard !log.hostIsGone.withLock({ $0 }) else { return nil }
        return BareMetalHost(
          metadata: ObjectMeta(name: name),
          spec: .init(
            bmc: .init(
              address: "ipmi://b",
              credentialsSecretRef: .init(name: "s", namespace: log.secretNamespace.withLock { $0 })),
            dpu: .init(node: "d")))
      },
      readSecret: { _, _ in
        log.secretsRead.withLock { $0 += 1 }
        if let error = log.secretError.withLock({ $0 }) { throw error }
        return Secret(
          metadata: ObjectMeta(name: "s"), type: nil,
          data: ["username": Data("u".utf8), "password": Data(log.password.withLock { $0 }.utf8)])
      },
      makeBMC: { _, credentials, _ in
        log.tried.withLock { $0.append(credentials.password) }
        let isGood = log.accepted.withLock { $0?.contains(credentials.password) ?? true }
        guard !isGood else { return bmc }
        let refusing = PaperBMC()
        refusing.state.withLock { $0.readError = BMCError(.unauthorized, operation: "read", message: "refused") }
        return refusing
      },
      releaseBMC: { address in log.released.withLock { $0.append("\(address)") } },
      forgetRefusals: { _ in log.forgotten.withLock { $0 += 1 } },
      tell: { _, event in log.events.withLock { $0.append(event.reason) } },
      limits: limits,
      logger: Logger(label: "test", factory: { _ in SwiftLogNoOpLogHandler() }),
      wake: { host in log.woken.withLock { $0.append(host) } },
      changed: { host in log.changed.withLock { $0.append(host) } })
  }

  @Test("A BMC that answers but refuses the command is told so once, and is not asked again and again")
  func refusedCommand() async throws {
    bmc.state.withLock {
      $0.commandError = BMCError(.forbidden, operation: "on of b", message: "the account may not do this")
    }
    var limits = PowerService.Limits()
    limits.tracker.commandRetry = .seconds(60)
    let service = service(limits)
    service.want("h", .on)
    _ = try await service.attend(to: "h")
    let changes = log.changes
    for _ in 0..<20 { _ = try await service.attend(to: "h") }
    #expect(bmc.commands == [.on], "the next try is a minute away")
    #expect(log.changes == changes, "the same trouble is no news")
    let view = service.view("h")
    #expect(view.power == .off, "what it reads counts all the same")
    #expect(view.problem?.contains("did not take the command") == true)
    #expect(view.refusesCommand)
    var hostView = HostView(
      host: BareMetalHost(
        metadata: ObjectMeta(name: "h"),
        spec: .init(bmc: .init(address: "ipmi://b", credentialsSecretRef: .init(name: "s")), dpu: .init(node: "d"))),
      now: .now())
    hostView.power = view
    hostView.bmcAnswered = true
    #expect(plan(hostView).status.conditions?.condition("BMCReachable")?.reason == "CommandRefused")
    service.want("h", .observe)
    #expect(service.view("h").problem == nil)
  }

  @Test("A BMC that refuses to turn off what is off is no trouble")
  func needless() async throws {
    bmc.state.withLock {
      $0.commandError = BMCError(.rejected, operation: "off", message: "already off", isStateRefusal: true)
    }
    let service = service()
    service.want("h", .off(grace: .zero))
    _ = try await service.attend(to: "h")
    #expect(bmc.commands == [.forceOff])
    #expect(service.view("h").problem == nil)
  }

  @Test("A new account is tried, and the one before is used while the new one is refused")
  func rotation() async throws {
    log.accepted.withLock { $0 = ["old"] }
    log.password.withLock { $0 = "old" }
    let service = service()
    _ = try await service.attend(to: "h")
    log.password.withLock { $0 = "new" }
    for _ in 0..<3 { _ = try await service.attend(to: "h") }
    #expect(log.tried.withLock { $0 } == ["old", "new", "old", "old"], "tried once, and not again and again")
    #expect(service.view("h").power == .off && service.view("h").problem == nil)
    #expect(service.accountProblem("h")?.contains("the one before is used") == true)
    #expect(log.events.withLock { $0 } == ["NewAccountRefused"])
    // The BMC's password is changed afterwards.
    log.accepted.withLock { $0 = ["new"] }
    for _ in 0..<3 { _ = try await service.attend(to: "h") }
    #expect(log.tried.withLock { $0.last } == "new")
    #expect(log.forgotten.withLock { $0 } == 1, "what the BMC refused before says nothing any more")
    #expect(service.accountProblem("h") == nil && service.view("h").problem == nil)
  }

  @Test("An account that is good at once is taken, and told")
  func goodRotation() async throws {
    let service = service()
    _ = try await service.attend(to: "h")
    log.password.withLock { $0 = "q" }
    for _ in 0..<2 { _ = try await service.attend(to: "h") }
    #expect(log.events.withLock { $0 } == ["AccountChanged"])
    #expect(log.released.withLock { $0.count } == 1, "the session of the old account is ended")
  }

  @Test("A new term as the leader begins without the wishes and the proofs of the one before")
  func newTerm() async throws {
    var limits = PowerService.Limits()
    limits.tracker.offInterval = .zero
    let service = service(limits)
    service.want("h", .off(grace: .zero))
    for _ in 0..<8 { _ = try await service.attend(to: "h") }
    #expect(service.view("h").fencedOff)
    service.want("g", .on)
    log.woken.withLock { $0 = [] }
    service.startOver()
    #expect(service.view("h") == PowerView())
    #expect(service.view("g") == PowerView())
    #expect(log.woken.withLock { $0 } == ["g", "h"], "they are looked at anew")
    for _ in 0..<8 { _ = try await service.attend(to: "g") }
    #expect(bmc.commands == [.forceOff], "the old wish is not carried out")
  }

  @Test("The account of a BMC that answers is not read at each look, and at once when the BMC does not")
  func accountIsKept() async throws {
    let service = service(accountEvery: .seconds(3600))
    for _ in 0..<5 { _ = try await service.attend(to: "h") }
    #expect(log.secretsRead.withLock { $0 } == 1)
    bmc.state.withLock { $0.readError = BMCError(.unauthorized, operation: "read power", message: "refused") }
    _ = try await service.attend(to: "h")
    #expect(log.secretsRead.withLock { $0 } == 1, "what was known was tried")
    bmc.state.withLock { $0.readError = nil }
    _ = try await service.attend(to: "h")
    #expect(log.secretsRead.withLock { $0 } == 2, "after a refusal the account is looked at first")
    _ = try await service.attend(to: "h")
    #expect(log.secretsRead.withLock { $0 } == 2)
    #expect(service.view("h").problem == nil)
  }

  @Test("Trouble with the API server is none of the BMC's")
  func apiOutage() async throws {
    bmc.state.withLock { $0.power = .on }
    let service = service()
    _ = try await service.attend(to: "h")
    let changes = log.changes
    log.secretError.withLock {
      $0 = KubernetesError(code: .unavailable, operation: "get secrets", message: "connection refused")
    }
    for _ in 0..<3 { await #expect(throws: KubernetesError.self) { try await service.attend(to: "h") } }
    #expect(service.view("h") == PowerView(power: .on))
    #expect(log.changes == changes)
  }

  @Test("The account of a BMC is read from the system's namespace only, and what to do is told")
  func foreignSecret() async throws {
    log.secretNamespace.withLock { $0 = "tenant" }
    let service = service()
    service.want("h", .on)
    for _ in 0..<3 { _ = try await service.attend(to: "h") }
    #expect(log.secretsRead.withLock { $0 } == 0)
    #expect(bmc.commands == [])
    var view = HostView(
      host: BareMetalHost(
        metadata: ObjectMeta(name: "h"),
        spec: .init(
          bmc: .init(address: "ipmi://b", credentialsSecretRef: .init(name: "s", namespace: "tenant")),
          dpu: .init(node: "d"))), now: .now())
    view.power = service.view("h")
    view.bmcAnswered = true
    let status = plan(view).status
    let condition = status.conditions?.condition("BMCReachable")
    #expect(condition?.reason == "CredentialsNotAllowed")
    for word in ["tenant/s", "ycloud-system", "make the secret there"] {
      #expect(condition?.message.contains(word) == true, "\(condition?.message ?? "")")
    }
    #expect(hostEvents(from: nil, to: status).contains { $0.reason == "CredentialsNotAllowed" })
    log.secretNamespace.withLock { $0 = Names.systemNamespace }
    _ = try await service.attend(to: "h")
    #expect(log.secretsRead.withLock { $0 } == 1)
  }

  @Test("A secret that is not there is a problem that is told")
  func missingSecret() async throws {
    log.secretError.withLock { $0 = KubernetesError(code: .notFound, operation: "get secrets", message: "not found") }
    let service = service()
    _ = try await service.attend(to: "h")
    #expect(service.view("h").problem?.contains("there is no secret") == true)
  }

  @Test("A worker has time for a reading and an inventory, and one that is cut off is not begun again at once")
  func slowInventory() async throws {
    let bounds = BMCLimits()
    #expect(bounds.call + max(bounds.call, bounds.inventory) + .seconds(30) <= PowerService.timeLimit)
    bmc.state.withLock { $0.inventoryIsCancelled = true }
    let service = service()
    bmc.state.withLock { $0.power = .on }
    var cancellations = 0
    for _ in 0..<4 {
      do {
        _ = try await service.attend(to: "h")
      } catch is CancellationError {
        cancellations += 1
      }
    }
    #expect(cancellations == 1)
    #expect(bmc.state.withLock { $0.inventories } == 1)
  }

  @Test("A BMC's client is given back when the account changes and when the host goes")
  func release() async throws {
    let service = service()
    for _ in 0..<3 { _ = try await service.attend(to: "h") }
    #expect(log.released.withLock { $0 } == [])
    log.password.withLock { $0 = "another" }
    for _ in 0..<3 { _ = try await service.attend(to: "h") }
    #expect(log.released.withLock { $0 } == ["ipmi://b:623"])
    log.hostIsGone.withLock { $0 = true }
    for _ in 0..<2 { #expect(try await service.attend(to: "h") == nil) }
    #expect(log.released.withLock { $0 }.count == 2)
  }
}
