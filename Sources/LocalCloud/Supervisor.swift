package import Logging

/// Brings the parts of a cloud up in their order and keeps them up: what ends is started again.
///
/// It can itself be killed at any moment. The programs go on without it, and the next supervisor finds them by their
/// pid files and command lines.
package struct Supervisor: Sendable {
  private let components: [Component]
  private let board: StateBoard
  private let logger: Logger
  private let logDirectory: String

  /// - Throws: ``LocalCloudError`` when the dependencies do not add up.
  package init(components: [Component], directory: CloudDirectory, logger: Logger) throws {
    let order = try StartOrder.sort(components.map { ($0.name, $0.dependencies) })
    let byName = Dictionary(components.map { ($0.name, $0) }, uniquingKeysWith: { first, _ in first })
    self.components = order.compactMap { byName[$0] }
    board = StateBoard(names: order, path: directory.state)
    logDirectory = directory.logs
    self.logger = logger
  }

  /// Runs until the task is cancelled. The programs are left running then: stopping them is `down`'s work.
  package func run() async {
    await withTaskGroup(of: Void.self) { group in
      for component in components {
        group.addTask { await supervise(component) }
      }
      group.addTask { await keepLogsShort() }
    }
  }

  private func supervise(_ component: Component) async {
    for dependency in component.dependencies { await board.waitUntilReady(dependency) }
    var backoff = RestartBackoff()
    while !Task.isCancelled {
      let start = ContinuousClock.now
      let outcome =
        switch component.work {
        case .process(let program): await runOnce(component, program)
        case .task(let body): await doOnce(component, body)
        }
      guard let outcome, !Task.isCancelled else { return }
      let pause = backoff.delay(afterRunning: ContinuousClock.now - start)
      logger.warning(
        "part is started again", metadata: ["part": "\(component.name)", "reason": "\(outcome)", "after": "\(pause)"])
      board.update(component.name) {
        $0.phase = .restarting
        $0.pid = nil
        $0.message = outcome
        $0.restarts += 1
      }
      guard (try? await Task.sleep(for: pause)) != nil else { return }
    }
  }

  /// Does a task. Returns why it has to be done again, or nil when it is done.
  private func doOnce(_ component: Component, _ body: @Sendable () async throws -> Void) async -> String? {
    let start = ContinuousClock.now
    board.update(component.name) { $0.phase = .starting }
    do {
      try await body()
    } catch {
      return Task.isCancelled ? nil : "\(error)"
    }
    markReady(component.name, since: start)
    return nil
  }

  /// Starts or takes over a program and stays with it. Returns how it ended, or nil when the task was cancelled.
  private func runOnce(_ component: Component, _ program: Program) async -> String? {
    let start = ContinuousClock.now
    let identity: ProcessIdentity
    do {
      identity = try await startOrTakeOver(component.name, program)
    } catch {
      return Task.isCancelled ? nil : "\(error)"
    }
    board.update(component.name) {
      $0.phase = .starting
      $0.pid = identity.pid
    }
    await withTaskGroup(of: Bool.self) { group in
      group.addTask {
        await Processes.waitForEnd(identity)
        return true
      }
      group.addTask {
        await waitUntilReady(component.readiness)
        if !Task.isCancelled { markReady(component.name, since: start) }
        return false
      }
      for await hasEnded in group where hasEnded { group.cancelAll() }
    }
    if Task.isCancelled { return nil }
    return Processes.reap(identity) ?? "ended"
  }

  private func startOrTakeOver(_ name: String, _ program: Program) async throws -> ProcessIdentity {
    if let running = Processes.find(program) {
      if Processes.isCurrent(running, program) {
        try Files.write(program.pidFile, running.pidFileText, isDurable: false)
        logger.info("part is running already", metadata: ["part": "\(name)", "pid": "\(running.pid)"])
        return running
      }
      logger.info("part is replaced: its settings or its program changed", metadata: ["part": "\(name)"])
      try await Processes.stop(running, graceSeconds: program.graceSeconds)
    }
    let identity = try Processes.start(program)
    logger.info("part was started", metadata: ["part": "\(name)", "pid": "\(identity.pid)"])
    return identity
  }

  private func markReady(_ name: String, since start: ContinuousClock.Instant) {
    let seconds = (ContinuousClock.now - start) / .seconds(1)
    board.update(name) {
      $0.phase = .ready
      $0.readyAfterSeconds = (seconds * 1000).rounded() / 1000
    }
    logger.info("part is ready", metadata: ["part": "\(name)", "seconds": "\(seconds)"])
  }

  private func waitUntilReady(_ readiness: Component.Readiness) async {
    let start = ContinuousClock.now
    while !Task.isCancelled {
      let isReady =
        switch readiness {
        case .started: true
        case .unixSocket(let path): Probe.unixSocket(path)
        case .http(let port, let path): await Probe.http(port: port, path: path)
        case .probe(let question): (try? await question()) ?? false
        }
      if isReady { return }
      // Quick while people wait for it, rarely when something is broken.
      let pause: Duration = ContinuousClock.now - start < .seconds(20) ? .milliseconds(25) : .seconds(1)
      guard (try? await Task.sleep(for: pause)) != nil else { return }
    }
  }

  /// Once a minute, a log that has grown too long becomes the old one. The programs append, so they go on at the start
  /// of the emptied file.
  private func keepLogsShort() async {
    while (try? await Task.sleep(for: .seconds(60))) != nil {
      for name in Files.names(in: logDirectory) where name.hasSuffix(".log") {
        do {
          try LogFile.shorten("\(logDirectory)/\(name)")
        } catch {
          logger.warning("log could not be shortened", metadata: ["log": "\(name)", "error": "\(error)"])
        }
      }
    }
  }
}
