import Glibc

extension LocalCloud {
  /// Starts the cloud, or brings a running one in line with the options, and returns when all parts are ready.
  ///
  /// Every step first looks at what is there, so that it can be repeated after a crash, a reboot or a failure.
  /// - Throws: ``LocalCloudError``; what was started so far goes on, for `down` or another `up`.
  public func up(_ options: CloudOptions, logLevel: String, timeout: Duration) async throws -> CloudState {
    try Self.requireRoot("start a cloud")
    let programs = try Self.programs()
    _ = try DeployFiles.directory()
    return try await withLock(operation: "start the cloud") {
      try await prepareAndStart(options, programs: programs, logLevel: logLevel, timeout: timeout)
    }
  }

  private func prepareAndStart(
    _ options: CloudOptions, programs: CloudComponents.Programs, logLevel: String, timeout: Duration
  ) async throws -> CloudState {
    var settings = try CloudSettings.resolve(options, existing: try settings())
    try await BridgeNetwork(directory: directory, settings: settings).check()
    try linkShortPath()
    settings.ports = try await choosePorts(settings, base: options.portBase)
    try Files.write(directory.settings, try JSONFile.encode(settings))

    try await prepareFiles(settings)
    let pool = try await StoragePool(directory: directory, settings: settings).open()
    report("pool: \(pool)")
    try await BridgeNetwork(directory: directory, settings: settings).open()
    report("bridge \(settings.name): \(settings.subnet), DHCP")

    try await stopSupervisor()
    try? Files.remove(directory.state)
    let supervisor = try Processes.start(
      Program(
        executable: programs.ycloud,
        arguments: ["supervise", "--dir", directory.path, "--log-level", logLevel],
        log: directory.log(Self.supervisor), pidFile: directory.pidFile(Self.supervisor), graceSeconds: 5))
    return try await follow(supervisor, timeout: timeout)
  }

  /// Keys, kubeconfigs and folders.
  private func prepareFiles(_ settings: CloudSettings) async throws {
    let hosts = settings.hostNames
    try await Certificates(directory: directory).make(hosts: hosts)
    try writeKubeconfigs(settings)
    report("keys, certificates and kubeconfigs: \(directory.pki)")
    for path in [directory.logs, directory.etcd, directory.dhcpHosts] {
      try Files.makeDirectory(path, mode: path == directory.dhcpHosts ? 0o755 : 0o700)
    }
    for host in hosts {
      let files = directory.host(host)
      for path in [files.path, files.bus, files.state, files.dpuState, files.handlerState] {
        try Files.makeDirectory(path, mode: 0o700)
      }
      if !Files.exists(files.bmcCredentials) {
        try Files.write(files.bmcCredentials, "admin:\(Self.makePassword())\n", mode: 0o600)
      }
    }
  }

  private func writeKubeconfigs(_ settings: CloudSettings) throws {
    try Files.makeDirectory(directory.credentials, mode: 0o700)
    let authority = try Files.read(directory.certificate(Certificates.Authority.cluster.rawValue)) ?? ""
    for account in Account.all(hosts: settings.hostNames) {
      let text = Account.kubeconfig(
        cloud: settings.name, server: "https://127.0.0.1:\(settings.ports[PortPlan.apiServer] ?? 0)",
        authority: authority, certificate: try Files.read(directory.certificate(account.name)) ?? "",
        key: try Files.read(directory.privateKey(account.name)) ?? "", user: account.user)
      let path = account == .administrator ? directory.kubeconfig : directory.roleKubeconfig(account.name)
      // Not touched without need: a client that watches the file would connect anew.
      if try Files.read(path) != text { try Files.write(path, text, mode: 0o600) }
    }
  }

  private static func makePassword() -> String {
    let characters = Array("abcdefghijkmnopqrstuvwxyzABCDEFGHJKLMNPQRSTUVWXYZ23456789")
    var random = SystemRandomNumberGenerator()
    return String((0..<24).map { _ in characters[Int.random(in: 0..<characters.count, using: &random)] })
  }

  /// Keeps the ports of an earlier start where nobody else took them meanwhile.
  private func choosePorts(_ settings: CloudSettings, base: Int?) async throws -> [String: Int] {
    let uses = PortPlan.uses(hosts: settings.hostNames)
    let running = Set(
      Files.names(in: directory.run).filter { $0.hasSuffix(".pid") }.map { String($0.dropLast(4)) }
        .filter { ProcessTable.running(pidFile: directory.pidFile($0)) != nil })
    if let base, !(1024...65_000).contains(base) {
      throw LocalCloudError(.invalidSettings, operation: "use --port-base", "\(base) is not between 1024 and 65000")
    }
    var remembered = settings.ports
    for (use, port) in settings.ports where !running.contains(PortPlan.owner(of: use)) {
      if let base, port < base {
        remembered[use] = nil
      } else if try await !becomesFree(port) {
        report("port \(port) of \(use) is given up: another program has it")
        remembered[use] = nil
      }
    }
    return try PortPlan.choose(
      uses: uses, remembered: remembered, base: base ?? PortPlan.defaultBase(directory: directory.path),
      isFree: Probe.isFree)
  }

  /// Whether a port is free, or soon is: a process that was just killed has its sockets for some moments yet.
  private func becomesFree(_ port: Int) async throws -> Bool {
    for _ in 0..<40 {
      if Probe.isFree(port: port) { return true }
      try await Task.sleep(for: .milliseconds(50))
    }
    return false
  }

  /// A link in /run to a directory whose own path is too long for Unix sockets.
  private func linkShortPath() throws {
    guard directory.shortPath != directory.path else { return }
    try Files.makeDirectory("/run/ycloud")
    let temporary = "\(directory.shortPath).new"
    unlink(temporary)
    guard symlink(directory.path, temporary) == 0, rename(temporary, directory.shortPath) == 0 else {
      throw Files.failure("link \(directory.shortPath)")
    }
  }

  /// Ends a supervisor that still runs. What it looked after goes on.
  func stopSupervisor() async throws {
    if let running = ProcessTable.running(pidFile: directory.pidFile(Self.supervisor)) {
      try await Processes.stop(running, graceSeconds: 5)
    }
    for pid in ProcessTable.all() {
      let arguments = ProcessTable.arguments(pid)
      guard arguments.dropFirst().starts(with: ["supervise", "--dir", directory.path]),
        let identity = ProcessTable.identity(pid)
      else { continue }
      try await Processes.stop(identity, graceSeconds: 5)
    }
    try Files.remove(directory.pidFile(Self.supervisor))
  }

  /// Reports each part as it becomes ready, until all are.
  private func follow(_ supervisor: ProcessIdentity, timeout: Duration) async throws -> CloudState {
    let deadline = ContinuousClock.now + timeout
    var reported: [String: Int] = [:]
    while true {
      try await Task.sleep(for: .milliseconds(50))
      let state = try JSONFile.read(CloudState.self, from: directory.state)
      for part in state?.parts ?? [] {
        if part.phase == .ready, reported[part.name] != -1 {
          reported[part.name] = -1
          report("\(part.name) is ready (\(Self.seconds(part.readyAfterSeconds ?? 0)))")
        } else if part.phase == .restarting, reported[part.name, default: 0] < part.restarts {
          reported[part.name] = part.restarts
          report("\(part.name) is started again: \(part.message ?? "ended")")
        }
      }
      if let state, state.supervisor == supervisor.pid, state.isReady { return state }
      guard ProcessTable.isAlive(supervisor) else {
        _ = Processes.reap(supervisor)
        throw LocalCloudError(
          .process, operation: "start the cloud",
          "the supervisor ended; the end of \(directory.log(Self.supervisor)):\n"
            + LogFile.tail(directory.log(Self.supervisor)))
      }
      guard ContinuousClock.now < deadline else { throw notReady(state, timeout) }
    }
  }

  private func notReady(_ state: CloudState?, _ timeout: Duration) -> LocalCloudError {
    let late = (state?.parts ?? []).filter { $0.phase != .ready && $0.phase != .waiting }
    let details = late.map { part in
      "\n\(part.name): \(part.message ?? part.phase.rawValue); the end of \(directory.log(part.name)):\n"
        + LogFile.tail(directory.log(part.name))
    }
    return LocalCloudError(
      .timedOut, operation: "start the cloud",
      "not all parts are ready after \(timeout); they are still being tried, 'ycloud down' ends that."
        + details.joined())
  }

  static func seconds(_ value: Double) -> String {
    let tenths = Int((value * 10).rounded())
    return "\(tenths / 10).\(tenths % 10) s"
  }
}
