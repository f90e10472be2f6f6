package import Logging
import Telemetry

#if canImport(Glibc)
  import Glibc
#elseif canImport(Musl)
  import Musl
#endif

/// A server: power, firmware and a PCIe bus, around QEMU.
///
/// One loop (`run`) looks at what should be and what is, and brings them together; everything else only leaves a wish
/// and rings the bell. QEMU outlives this process and is taken over by the next one.
package actor Chassis {
  package enum Power: String, Sendable, Hashable {
    case on = "On"
    case off = "Off"
    case poweringOn = "PoweringOn"
    case poweringOff = "PoweringOff"
  }

  /// A change of power as Redfish names it (`ResetType`).
  package enum ResetType: String, Sendable, Hashable, CaseIterable {
    case on = "On"
    case forceOff = "ForceOff"
    case gracefulShutdown = "GracefulShutdown"
    case forceRestart = "ForceRestart"
    case gracefulRestart = "GracefulRestart"
    case powerCycle = "PowerCycle"
    case nmi = "Nmi"
  }

  let configuration: ChassisConfiguration
  let logger: Logger
  let metrics: SoftHostMetrics
  let bell = Doorbell()
  /// Rings when a machine starts, for those that connect to it.
  let started: Doorbell
  var record: ChassisRecord
  var machine: Machine?
  /// A QEMU that runs, but whose monitor does not answer (yet).
  var unconnected: QEMUProcess?
  /// Something of a QEMU may run that is no server: one whose start was cut short. Off is said when it is gone.
  var isLingering = false
  /// The machine was found before its first instruction and has not been let go yet.
  var isBootOwed = false
  /// Where the boot that is being prepared starts from. The record may be changed meanwhile: that is for the next one.
  var bootInProgress: BootSetting?
  var transition: Power?
  var wishes: [ResetType] = []
  var restart = RestartWish()
  var plugged: [BusPlan.Plugged] = []
  var attempts = PlugAttempts()
  /// Functions that the guest was asked to let go of.
  var leaving: Set<String> = []
  var problems: Set<String> = []
  /// A picture of the screen is being taken.
  var isPhotographing = false
  private var lock: CInt = -1

  /// Wishes that may wait.
  static let wishesMax = 8

  /// Opens the chassis' state. Throws `SoftHostError` where another process has it, where it cannot be built, and where
  /// it cannot be told whether its server runs.
  package init(configuration: ChassisConfiguration, started: Doorbell, metrics: SoftHostMetrics, logger: Logger) throws
  {
    try configuration.validate()
    self.configuration = configuration
    self.started = started
    self.logger = logger
    self.metrics = metrics
    try Chassis.makeDirectory(configuration.stateDirectory, mode: 0o700)
    try Chassis.makeDirectory(configuration.busDirectory, mode: 0o755)
    let path = configuration.stateDirectory + "/lock"
    let descriptor = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0o600)
    guard descriptor >= 0 else { throw TextFile.failure("open \(path)", errno) }
    guard Chassis.takeLock(descriptor) else {
      close(descriptor)
      throw SoftHostError(
        .conflict, operation: "open the chassis \(configuration.name)",
        message: "another softhost uses \(configuration.stateDirectory)")
    }
    lock = descriptor
    // A process that was killed while it took a picture has left it.
    unlink(configuration.screenFile)
    record = try ChassisRecord.load(configuration.stateFile)
    try record.save(configuration.stateFile)
    // Here and not in `run`: nobody may read a server as off because it was not looked for yet.
    unconnected = try QEMUProcess.find(configuration)
    if unconnected == nil { isLingering = try !QEMUProcess.strays(configuration).isEmpty }
  }

  deinit { if lock >= 0 { close(lock) } }

  /// A process that was killed while it started a program shares its lock with that one's beginnings for a moment.
  private static func takeLock(_ descriptor: CInt) -> Bool {
    for _ in 0..<50 {
      if flock(descriptor, LOCK_EX | LOCK_NB) == 0 { return true }
      usleep(20_000)
    }
    return false
  }

  private static func makeDirectory(_ path: String, mode: mode_t) throws {
    var made = ""
    for part in path.split(separator: "/", omittingEmptySubsequences: false) {
      made += made.isEmpty && part.isEmpty ? "/" : (made.isEmpty || made == "/" ? String(part) : "/" + part)
      if made == "/" || access(made, F_OK) == 0 { continue }
      guard mkdir(made, mode) == 0 || errno == EEXIST else {
        throw TextFile.failure("make the directory \(made)", errno)
      }
    }
  }

  /// Runs the chassis until cancelled. The server itself stays as it is: only its chassis' brain is gone.
  package func run() async throws {
    let bus = BusDirectory(path: configuration.busDirectory)
    let watcher = try DirectoryWatcher(path: bus.path) { [bell] in bell.ring() }
    await adopt()
    while true {
      let pause = await step(bus)
      watcher.arm()
      metrics.powerOn.set(power == .on ? 1 : 0)
      metrics.functions.set(Double(plugged.count))
      do {
        try await bell.wait(upTo: pause)
      } catch is CancellationError {
        machine?.client.close()
        return
      }
    }
  }

  // MARK: - Wishes

  /// Takes a wish for a change of power. Throws `SoftHostError` with code `conflict` where it makes no sense now.
  package func reset(_ type: ResetType) throws {
    let isOn = power != .off
    switch type {
    case .on, .forceOff: break
    case .gracefulShutdown, .forceRestart, .gracefulRestart, .powerCycle, .nmi:
      guard isOn else { throw SoftHostError(.conflict, operation: type.rawValue, message: "the server is off") }
    }
    guard wishes.count < Chassis.wishesMax else {
      throw SoftHostError(.conflict, operation: type.rawValue, message: "too many changes of power wait already")
    }
    logger.info("reset", metadata: ["type": "\(type.rawValue)"])
    metrics.resets.increment(type.rawValue)
    // What cuts the power must not wait for a guest that does not answer: commands under way fail at once.
    if type == .forceOff || type == .powerCycle, let process = machine?.process ?? unconnected {
      wishes.removeAll()
      transition = .poweringOff
      restart.forget()
      if type == .forceOff { remember { $0.isOn = false } }
      process.signalKill()
    } else if type == .on, !isOn {
      transition = .poweringOn
    }
    wishes.append(type)
    bell.ring()
  }

  package func setBoot(_ boot: BootSetting) throws {
    var changed = record
    changed.boot = boot
    try changed.save(configuration.stateFile)
    record = changed
  }

  func remember(_ change: (inout ChassisRecord) -> Void) {
    let before = record
    change(&record)
    guard record != before else { return }
    do {
      try record.save(configuration.stateFile)
    } catch {
      logger.error("the power state could not be saved", metadata: ["error": "\(error)"])
    }
  }

  /// What is there of the server is only waiting to be gone: its guest has powered off, or its power was to be cut.
  var isEnding: Bool { machine?.signals.hasShutDown ?? (unconnected != nil && !record.isOn) }

  /// The power as it is: off only when the process is gone.
  var power: Power {
    if isEnding { return .poweringOff }
    if let transition { return transition }
    if machine != nil || unconnected != nil { return .on }
    return isLingering ? .poweringOff : .off
  }
}
