import BMC
import Glibc
import Logging

extension LocalCloud {
  /// How long the operating systems of the servers get to shut down.
  private static let shutdownLimit: Duration = .seconds(20)

  /// Stops everything, also what a crashed supervisor left; with `purge` the directory is removed too.
  ///
  /// The servers' operating systems are asked to shut down first, unless `force` says that their power is cut at once, or
  /// their disks go with the directory.
  ///
  /// Nothing is assumed: processes are found by their pid files and by their command lines, the mount, the loop device
  /// and the bridge by asking the kernel.
  public func down(purge: Bool, force: Bool = false) async throws {
    try Self.requireRoot("stop a cloud")
    let hadDirectory = Files.isDirectory(directory.path)
    // A damaged file must not keep anything from being stopped.
    let settings = try? settings()
    let losesDisks = purge && settings?.pool == nil
    if hadDirectory {
      try await withLock(operation: "stop the cloud") {
        try await stopEverything(asking: force || losesDisks ? nil : settings)
        if purge { try Files.removeTree(directory.path) }
      }
    } else {
      try await stopEverything(asking: nil)
    }
    if directory.shortPath != directory.path { try Files.remove(directory.shortPath) }
    if purge, let pool = settings?.pool {
      report(
        "the volumes in \(pool)/volumes were not made by this command and stay; remove them if they are not needed")
    }
    report(purge ? "nothing is left of \(directory.path)" : "stopped; the data stay in \(directory.path)")
  }

  /// - Parameter settings: those of the cloud whose servers are to shut down first; nil where they are not.
  private func stopEverything(asking settings: CloudSettings?) async throws {
    try await stopSupervisor()
    var stopped: Set<Int32> = []
    for (index, tier) in Self.stopOrder.enumerated() {
      // Nobody is left who would turn a server on again that goes off by itself.
      if index == 1, let settings { await shutDownServers(settings) }
      let processes = cloudProcesses().filter { tier($0) && !stopped.contains($0.identity.pid) }
      stopped.formUnion(processes.map(\.identity.pid))
      try await withThrowingTaskGroup(of: String?.self) { group in
        for process in processes {
          group.addTask {
            let inTime = try await Processes.stop(process.identity, graceSeconds: process.graceSeconds)
            return "\(process.name) stopped" + (inTime ? "" : " (killed)")
          }
        }
        for try await line in group { line.map(report) }
      }
    }
    for name in Files.names(in: directory.run) where name.hasSuffix(".pid") {
      try Files.remove("\(directory.run)/\(name)")
    }
    try Files.remove(directory.state)

    try await StoragePool.close(directory)
    if try await BridgeNetwork.close(directory) { report("bridge removed") }
  }

  /// Asks the operating systems of the servers that are on to shut down, through their BMCs.
  private func shutDownServers(_ settings: CloudSettings) async {
    let names = cloudProcesses().map(\.name)
    guard names.contains(where: { $0.hasPrefix("qemu-system") }), names.contains("softhost") else { return }
    var limits = BMCLimits()
    limits.connect = .seconds(2)
    limits.request = .seconds(5)
    limits.call = .seconds(10)
    let pool = BMCClientPool(limits: limits, logger: Logger(label: "down"))
    let servers = settings.hostNames.compactMap { host -> ServerShutdown.Server? in
      do {
        let access = try BMCAccess(host, directory: directory, settings: settings)
        let client = try pool.client(
          for: BMCAddress(access.address),
          credentials: BMCCredentials(username: access.username, password: access.password),
          trust: .authorities(pem: access.authority))
        return (host, client)
      } catch {
        report("server \(host) could not be asked: \(error)")
        return nil
      }
    }
    await ServerShutdown(limit: Self.shutdownLimit, report: report).run(servers)
    try? await pool.shutdown()
  }

  /// A running process that belongs to this cloud.
  private struct CloudProcess: Sendable {
    var identity: ProcessIdentity
    var name: String
    var graceSeconds: Double
  }

  /// Those who give orders before those who obey; the servers before their disks; the API server before its database.
  private static let stopOrder: [@Sendable (CloudProcess) -> Bool] = [
    { $0.name.hasPrefix("bm-controller") || $0.name.hasPrefix("csi-controller") || $0.name.hasPrefix("bm-handler") },
    { $0.name.hasPrefix("softhost") },
    { $0.name.hasPrefix("qemu-system") },
    { $0.name.hasPrefix("opi-bridge") },
    { $0.name.hasPrefix("softdpu") || $0.name == "kube-controller-manager" || $0.name == "dnsmasq" },
    { $0.name == "kube-apiserver" },
    { _ in true },
  ]

  /// Every process of one of our programs whose command line has a path in this cloud's directory. Someone's editor or
  /// shell in the directory is none of them.
  private func cloudProcesses() -> [CloudProcess] {
    let programs = ["etcd", "kube-apiserver", "kube-controller-manager", "dnsmasq"]
    let prefixes = Set(["\(directory.path)/", "\(directory.shortPath)/"])
    return ProcessTable.all().compactMap { pid in
      let arguments = ProcessTable.arguments(pid)
      guard pid != getpid(), let program = arguments.first?.split(separator: "/").last.map(String.init),
        arguments.dropFirst().contains(where: { argument in prefixes.contains { argument.contains($0) } }),
        let identity = ProcessTable.identity(pid)
      else { return nil }
      if program == "ycloud", arguments.count > 1 {
        return CloudProcess(identity: identity, name: arguments[1], graceSeconds: 10)
      }
      if program.hasPrefix("qemu-system-") {
        return CloudProcess(identity: identity, name: program, graceSeconds: 5)
      }
      guard programs.contains(program) else { return nil }
      // An API server with watches open goes on for a minute after SIGTERM, and has nothing to lose.
      return CloudProcess(identity: identity, name: program, graceSeconds: program == "kube-apiserver" ? 1 : 10)
    }
  }
}
