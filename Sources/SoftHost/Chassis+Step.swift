import Logging
import Telemetry

extension Chassis {
  /// How long a file may be missing before its function counts as unplugged: servers replace their sockets on restart.
  static let removalGrace = Duration.milliseconds(300)
  /// How often everything is looked at when nothing tells of a change.
  static let rescan = Duration.seconds(5)

  /// Takes over a QEMU that an earlier process left.
  func adopt() async {
    guard let process = unconnected else {
      if record.isOn {
        logger.notice("the server lost its power while nobody looked")
        remember { $0.isOn = false }
      }
      return
    }
    guard record.isOn else {
      // Died between the decision to cut the power and the deed.
      await powerGone(killing: process)
      return
    }
    logger.notice("took over a running server", metadata: ["pid": "\(process.pid)"])
  }

  /// One look at everything. Returns for how long nothing needs to be looked at.
  func step(_ bus: BusDirectory) async -> Duration {
    await endLingering()
    await connectIfNeeded(bus)
    await lookAtMachine()
    await bootIfOwed(bus)
    while !wishes.isEmpty, !Task.isCancelled {
      let wish = wishes.removeFirst()
      await carryOut(wish, bus)
    }
    guard machine != nil else { return unconnected == nil && !isLingering ? Chassis.rescan : .milliseconds(500) }
    // A guest that has powered off but whose machine does not end needs no disks, only another attempt.
    if machine?.signals.hasShutDown == true { return .milliseconds(500) }
    let pause = await bring(bus)
    return isBootOwed ? min(pause, .milliseconds(500)) : pause
  }

  private func endLingering() async {
    guard isLingering else { return }
    do {
      try await QEMUProcess.endAll(configuration)
      isLingering = false
    } catch {
      logger.error("what is left of a start that failed cannot be ended", metadata: ["error": "\(error)"])
    }
  }

  private func connectIfNeeded(_ bus: BusDirectory) async {
    guard let process = unconnected else { return }
    guard process.isAlive else {
      unconnected = nil
      return lost("ended")
    }
    // The power could not be cut when that was wanted: nothing but that is left to do with it.
    guard record.isOn else {
      await powerGone(killing: process)
      if unconnected == nil, restart.take() { wishes.insert(.on, at: 0) }
      return
    }
    do {
      let machine = try await Machine.connect(process, configuration: configuration, bell: bell)
      let isBeforeBoot = try await machine.isBeforeBoot()
      plugged = try await machine.plugged()
      try await machine.removeOrphans(plugged)
      // The power may have been cut meanwhile.
      guard unconnected === process else { return }
      self.machine = machine
      isBootOwed = isBeforeBoot
      unconnected = nil
      if !machine.version.reconnectsAlways {
        logger.warning(
          "this QEMU loses a disk whose data plane starts again while firmware runs; install QEMU 9.1 or newer",
          metadata: ["version": "\(machine.version)"])
      }
      started.ring()
    } catch {
      guard process.isAlive, !Task.isCancelled else { return }
      logger.warning("the monitor of QEMU does not answer", metadata: ["error": "\(error)"])
    }
  }

  /// Lets a machine that was found before its first instruction go; where that fails the next step tries again.
  private func bootIfOwed(_ bus: BusDirectory) async {
    guard isBootOwed, let machine, !machine.signals.isDisconnected, !machine.signals.hasShutDown else { return }
    do {
      try await finishBoot(machine, record.boot, bus)
      isBootOwed = false
    } catch {
      if Task.isCancelled { return }
      logger.warning("the server cannot be let go", metadata: ["error": "\(error)"])
    }
  }

  private func lookAtMachine() async {
    guard let machine else { return }
    let signals = machine.signals
    if signals.hasShutDown { restart.poweredOff(now: .now) }
    if !machine.process.isAlive {
      self.machine = nil
      return lost("ended")
    }
    if signals.hasShutDown {
      if record.isOn { logger.notice("the guest has powered off") }
      remember { $0.isOn = false }
      // Until it has ended, which may take another attempt: it is not off yet, but not on any more either.
      transition = .poweringOff
      if await end(machine), restart.take() { wishes.insert(.on, at: 0) }
      return
    }
    if signals.isDisconnected {
      unconnected = machine.process
      self.machine = nil
    }
  }

  /// The process is gone without having been told to go.
  private func lost(_ what: String) {
    if transition != .poweringOff { logger.error("QEMU \(what) by itself: the server is off") }
    transition = nil
    plugged = []
    // A power cycle has cut the power and is about to give it again.
    if wishes.first != .powerCycle { remember { $0.isOn = false } }
    if restart.take() { wishes.insert(.on, at: 0) }
  }

  /// Ends a machine in order. False where it does not go.
  private func end(_ machine: Machine) async -> Bool {
    do {
      try await machine.quit()
      self.machine = nil
      plugged = []
      transition = nil
      return true
    } catch {
      if !Task.isCancelled { logger.error("QEMU does not end", metadata: ["error": "\(error)"]) }
      return false
    }
  }

  func powerGone(killing process: QEMUProcess) async {
    do {
      try await process.kill()
      machine = nil
      unconnected = nil
      plugged = []
      transition = nil
    } catch {
      logger.error("the power cannot be cut", metadata: ["error": "\(error)"])
      unconnected = process
      machine = nil
    }
  }

  private func carryOut(_ wish: ResetType, _ bus: BusDirectory) async {
    do {
      switch wish {
      case .on:
        if isEnding { return restart.demand() }
        restart.forget()
        if machine == nil && unconnected == nil { try await powerOn(bus) } else { transition = nil }
      case .forceOff:
        restart.forget()
        remember { $0.isOn = false }
        if let process = machine?.process ?? unconnected { await powerGone(killing: process) }
        transition = nil
      case .powerCycle:
        try await cycle(bus)
      case .forceRestart:
        // An override is looked at when power comes, so a restart with one is a cycle.
        if record.boot.enabled == .disabled { try await machine?.reset() } else { try await cycle(bus) }
      case .gracefulShutdown:
        restart.forget()
        try await machine?.pressPowerButton()
      case .gracefulRestart:
        guard let machine else { return }
        restart.ask(now: .now)
        try await machine.pressPowerButton()
      case .nmi:
        try await machine?.interrupt()
      }
    } catch {
      // It is this process that ends; what it was doing is taken up by the next one.
      if Task.isCancelled { return }
      logger.error("reset failed", metadata: ["type": "\(wish.rawValue)", "error": "\(error)"])
      if machine == nil && unconnected == nil { transition = nil }
    }
  }

  private func cycle(_ bus: BusDirectory) async throws {
    restart.forget()
    transition = .poweringOff
    if let process = machine?.process ?? unconnected { await powerGone(killing: process) }
    guard machine == nil, unconnected == nil else { return }
    try await powerOn(bus)
  }

  // MARK: - Power on

  private func powerOn(_ bus: BusDirectory) async throws {
    transition = .poweringOn
    let begin = ContinuousClock.now
    let boot = record.boot
    remember { $0.isOn = true }
    var process: QEMUProcess?
    do {
      if QEMUCommandLine.usesUEFI(configuration) { try prepareFirmwareVariables() }
      let acceleration = configuration.acceleration ?? Acceleration.detect()
      let commandLine = QEMUCommandLine(configuration, uuid: record.uuid, acceleration: acceleration)
      let begun = try await QEMUProcess.start(commandLine, configuration: configuration)
      process = begun
      let machine = try await Machine.connect(begun, configuration: configuration, bell: bell)
      self.machine = machine
      isBootOwed = false
      plugged = []
      attempts = PlugAttempts()
      leaving = []
      started.ring()
      try await finishBoot(machine, boot, bus)
      metrics.powerOnSeconds.observe(begin.duration(to: .now))
      logger.notice("powered on", metadata: ["pid": "\(begun.pid)", "accelerator": "\(acceleration.rawValue)"])
    } catch {
      // The server goes on when this process ends: the next one finds it, before its first instruction or after.
      if Task.isCancelled { throw error }
      remember { $0.isOn = false }
      if let process {
        // Its own handle, because a process that is ending cannot be found by what it was started with.
        await powerGone(killing: process)
      } else {
        isLingering = true
        await endLingering()
      }
      transition = nil
      throw error
    }
  }

  /// Plugs what is on the bus and lets the machine run its first instruction.
  ///
  /// - Parameter boot: where it starts from; a setting for one boot is spent by it.
  private func finishBoot(_ machine: Machine, _ boot: BootSetting, _ bus: BusDirectory) async throws {
    bootInProgress = boot
    defer { bootInProgress = nil }
    // A back end that is just being restarted gets a moment; the rest is plugged when it comes.
    let deadline = ContinuousClock.now + .seconds(3)
    while true {
      let pause = await bring(bus)
      guard attempts.hasFailed, ContinuousClock.now < deadline, !machine.signals.isDisconnected else { break }
      try await Task.sleep(for: min(pause, .milliseconds(200)))
    }
    try await machine.boot()
    // Another setting has come while this boot was prepared, so it has not been used.
    if boot.enabled == .once && record.boot == boot { remember { $0.boot = BootSetting() } }
    transition = nil
  }

  private func prepareFirmwareVariables() throws {
    let files = QEMUCommandLine.firmwareFiles(.native)
    guard (try? TextFile.readBytes(configuration.firmwareVariables, limit: 128 << 20)) == nil else { return }
    do {
      try TextFile.replace(
        configuration.firmwareVariables, with: try TextFile.readBytes(files.variables, limit: 128 << 20))
    } catch {
      throw SoftHostError(
        .configuration, operation: "prepare UEFI",
        message: "\(files.variables) is missing; install the package ovmf "
          + "(qemu-efi-aarch64 on arm64)", cause: error)
    }
  }

  // MARK: - The bus

  /// Brings what is plugged to what is on the bus. Returns when to look again.
  private func bring(_ bus: BusDirectory) async -> Duration {
    guard let machine else { return Chassis.rescan }
    let content: BusDirectory.Content
    do {
      content = try bus.scan()
    } catch {
      // A directory that cannot be read is no order to unplug everything.
      report(["the bus cannot be read: \(error)"])
      return .seconds(1)
    }
    let now = ContinuousClock.now
    let kept = attempts.kept(content.functions, plugged: plugged, now: now, grace: Chassis.removalGrace)
    let plan = BusPlan(bus: content.functions, plugged: plugged, kept: kept, ports: configuration.ports)
    var news = content.problems + plan.withoutPort.map { "no port is free for \($0)" }
    for step in plan.steps {
      guard self.machine === machine, !machine.signals.isDisconnected else { return .zero }
      do {
        try await carryOut(step, machine)
      } catch {
        news.append("\(error)")
      }
    }
    if !plan.steps.isEmpty || !leaving.isEmpty, let read = try? await machine.plugged(), self.machine === machine {
      plugged = read
    }
    let isNews = await finishUnplugs(machine)
    for id in leaving.intersection(machine.signals.refusals) { news.append("the guest refuses to let go of \(id)") }
    report(news)
    // Its port is free now, and perhaps its name.
    if isNews { return .milliseconds(1) }
    return attempts.nextLook(after: .now, default: Chassis.rescan)
  }

  private func carryOut(_ step: BusPlan.Step, _ machine: Machine) async throws {
    switch step {
    case .plug(let function, let port):
      guard attempts.mayTry(function.id, now: .now) else { return }
      do {
        try await plug(function, port: port, machine)
        attempts.succeeded(function.id)
        logger.info("plugged", metadata: ["function": "\(function.id)", "port": "\(port)"])
      } catch {
        attempts.failed(function.id, now: .now)
        throw error
      }
    case .unplug(let id):
      guard attempts.mayTry(id, now: .now) else { return }
      // Asked now and then until it is gone; nothing waits for the guest meanwhile.
      attempts.failed(id, now: .now)
      if leaving.insert(id).inserted {
        logger.info("asked the guest to let go", metadata: ["function": "\(id)"])
      }
      try await machine.requestUnplug(id)
    }
  }

  /// Ends what was asked for where the guest has let go. Returns whether there was something.
  private func finishUnplugs(_ machine: Machine) async -> Bool {
    var isNews = false
    for id in leaving where !plugged.contains(where: { $0.id == id }) {
      await machine.finishUnplug(id)
      leaving.remove(id)
      attempts.succeeded(id)
      logger.info("unplugged", metadata: ["function": "\(id)"])
      isNews = true
    }
    return isNews
  }

  private func plug(_ function: BusFunction, port: Int, _ machine: Machine) async throws {
    let rom = function.isNIC && bootsFromNetwork
    let index = bootIndex(function)
    do {
      try await machine.plug(function, port: port, bootIndex: index, isBootROM: rom)
    } catch let error as SoftHostError
      where error.code == .refused && (error.message.contains("bootindex") || (rom && error.message.contains("rom")))
    {
      // Two functions with one number, or a machine without option ROMs: better not to boot from it than to lack it.
      logger.warning("plugged without booting from it", metadata: ["function": "\(function.id)", "reason": "\(error)"])
      try await machine.plug(function, port: port, bootIndex: nil, isBootROM: false)
    }
  }

  private var bootsFromNetwork: Bool {
    let boot = bootInProgress ?? record.boot
    return boot.enabled != .disabled && boot.target == .network
  }

  /// Disks in the order of their numbers; network cards only where the BMC was told to boot from them, and then first.
  private func bootIndex(_ function: BusFunction) -> Int? {
    if function.isNIC { return bootsFromNetwork ? function.order : nil }
    return function.order + 100
  }

  /// Logs what is wrong when it begins to be and when it ends.
  private func report(_ news: [String]) {
    let now = Set(news)
    for text in now.subtracting(problems).sorted() { logger.warning("bus problem", metadata: ["problem": "\(text)"]) }
    if now.isEmpty && !problems.isEmpty { logger.info("no bus problem any more") }
    problems = now
    metrics.problems.set(Double(now.count))
  }
}
