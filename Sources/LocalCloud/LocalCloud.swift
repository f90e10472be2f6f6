import Glibc
public import Logging

/// A whole cloud on one machine: a Kubernetes control plane, simulated servers with their DPUs, a storage pool, a
/// network, and every ycloud role.
public struct LocalCloud: Sendable {
  public let directory: CloudDirectory
  /// Receives one line of progress at a time.
  let report: @Sendable (String) -> Void

  public init(directory: CloudDirectory, report: @escaping @Sendable (String) -> Void) {
    self.directory = directory
    self.report = report
  }

  /// What the supervisor last wrote, if it is running.
  public func state() throws -> CloudState? {
    guard ProcessTable.running(pidFile: directory.pidFile(Self.supervisor)) != nil else { return nil }
    return try JSONFile.read(CloudState.self, from: directory.state)
  }

  /// The settings of the cloud in this directory; nil when there is none.
  public func settings() throws -> CloudSettings? {
    try JSONFile.read(CloudSettings.self, from: directory.settings)
  }

  /// Brings up and keeps up all parts; runs until the task is cancelled. The programs go on after that.
  /// - Parameter logLevel: for the roles.
  public func supervise(logLevel: String, logger: Logger) async throws {
    guard let settings = try settings() else {
      throw LocalCloudError(
        .missingRequirement, operation: "supervise \(directory.path)", "there is no cloud in it; run 'ycloud up' first")
    }
    let components = CloudComponents(
      directory: directory, settings: settings, programs: try Self.programs(), logLevel: logLevel)
    let supervisor = try Supervisor(components: try components.all(), directory: directory, logger: logger)
    await supervisor.run()
  }

  static let supervisor = "supervisor"
  static let kubernetesVersion = "1.20.2"

  /// Finds all programs, or says how to get the missing one.
  static func programs() throws -> CloudComponents.Programs {
    guard let ycloud = Machine.ownExecutable else {
      throw LocalCloudError(.missingRequirement, operation: "find this program", "/proc/self/exe cannot be read")
    }
    let kubernetes =
      Machine.variable("YCLOUD_KUBERNETES") ?? "\(Machine.cache)/kubernetes/\(kubernetesVersion)/bin"
    func kubernetesProgram(_ name: String) throws -> String {
      let path = "\(kubernetes)/\(name)"
      guard Machine.isExecutable(path) else {
        throw LocalCloudError(
          .missingRequirement, operation: "find \(name)",
          "\(path) is not there; scripts/build-kubernetes.sh builds it (once, 7 minutes)")
      }
      return path
    }
    return CloudComponents.Programs(
      ycloud: ycloud, etcd: try Command.find("etcd"), dnsmasq: try Command.find("dnsmasq"),
      apiServer: try kubernetesProgram("kube-apiserver"),
      controllerManager: try kubernetesProgram("kube-controller-manager"))
  }

  static func requireRoot(_ operation: String) throws {
    guard Machine.isRoot else {
      throw LocalCloudError(
        .missingRequirement, operation: operation,
        "it takes root: bridges, loop devices and mounts are made; run it with sudo")
    }
  }
}

extension LocalCloud {
  /// Does something while no other `up` or `down` is at work in the same directory.
  func withLock<Result>(operation: String, _ body: () async throws -> Result) async throws -> Result {
    let deadline = ContinuousClock.now + .seconds(60)
    while true {
      if let descriptor = try takeLock() {
        defer { close(descriptor) }
        return try await body()
      }
      guard ContinuousClock.now < deadline else {
        throw LocalCloudError(
          .conflict, operation: operation, "another 'ycloud up' or 'down' has been busy with \(directory.path) for 60 s"
        )
      }
      try await Task.sleep(for: .milliseconds(50))
    }
  }

  /// Nil while somebody else has the lock.
  private func takeLock() throws -> Int32? {
    try Files.makeDirectory(directory.path, mode: 0o700)
    try Files.makeDirectory(directory.run, mode: 0o700)
    let descriptor = open(directory.lock, O_RDWR | O_CREAT | O_CLOEXEC, 0o600)
    guard descriptor >= 0 else { throw Files.failure("open \(directory.lock)") }
    // The one who had it may have removed the whole directory: then this is a lock on nothing.
    var held = stat()
    var named = stat()
    if flock(descriptor, LOCK_EX | LOCK_NB) == 0, fstat(descriptor, &held) == 0, stat(directory.lock, &named) == 0,
      held.st_ino == named.st_ino, held.st_dev == named.st_dev
    {
      return descriptor
    }
    close(descriptor)
    return nil
  }
}
