import Foundation
public import IaaS
public import JSON
public import Kubernetes
import Logging
import Synchronization
public import TestSupport

/// Runs `body` for each number, several at a time.
public func concurrently(_ count: Int, workers: Int, _ body: @escaping @Sendable (Int) async throws -> Void)
  async throws
{
  try await withThrowingTaskGroup(of: Void.self) { group in
    for number in 0..<count {
      if number >= workers { try await group.next() }
      group.addTask { try await body(number) }
    }
    try await group.waitForAll()
  }
}

/// A typed value as JSON.
public func json(_ value: some Encodable) throws -> JSONValue {
  try JSONValue.parse(Array(try JSONEncoder().encode(value)))
}

/// Writes by verb and resource, as the API server counts them.
public struct Writes: Sendable {
  /// By verb, resource and status code.
  public var counts: [String: Int]
  public init(counts: [String: Int] = [:]) { self.counts = counts }

  public var total: Int { counts.values.reduce(0, +) }

  public func subtracting(_ other: Writes) -> Writes {
    Writes(
      counts: counts.map { ($0, $1 - (other.counts[$0] ?? 0)) }.filter { $0.1 > 0 }.reduce(into: [:]) {
        $0[$1.0] = $1.1
      })
  }

  public var largest: [(String, Int)] {
    counts.sorted { ($0.value, $1.key) > ($1.value, $0.key) }.map { ($0.key, $0.value) }
  }
}

/// A control plane with the real controllers and a simulated fleet, each a process of its own.
public final class FleetCloud: Sendable {
  public let plane: TestControlPlane
  public let client: KubernetesClient
  private let ycloud: String
  private let pool: ReflinkFileSystem
  private let logs: String?
  private let processes = Mutex<[String: ChildProcess]>([:])
  public let hosts: ObjectCache<BareMetalHost>
  public let machines: ObjectCache<BareMetalMachine>
  private let caches: Task<Void, Never>
  public static let storageClass = "ycloud"

  private init(plane: TestControlPlane, ycloud: String, logs: String?) async throws {
    self.plane = plane
    self.ycloud = ycloud
    self.logs = logs
    pool = try await ReflinkFileSystem(sizeMiB: 16_384)
    var settings = try ClientConfiguration.load(kubeconfigPath: plane.kubeconfig)
    settings.queriesPerSecond = 1e6
    settings.burst = 1_000_000
    var logger = Logger(label: "bench")
    logger.logLevel = .error
    let client = try KubernetesClient(configuration: settings, logger: logger)
    self.client = client
    let hosts = ObjectCache<BareMetalHost>(client: client, logger: logger)
    let machines = ObjectCache<BareMetalMachine>(client: client, namespace: "default", logger: logger)
    (self.hosts, self.machines) = (hosts, machines)
    caches = Task {
      await withTaskGroup(of: Void.self) { group in
        group.addTask { try? await hosts.run() }
        group.addTask { try? await machines.run() }
      }
    }
  }

  /// - Parameter isAudited: Whether `authors()` can tell who wrote what.
  public static func start(
    ycloud: String, repository: String, logs: String?, isAudited: Bool = false
  ) async throws -> FleetCloud {
    let plane = try await TestControlPlane.start(
      controllers: ["persistentvolume-binder", "pvc-protection", "pv-protection", "garbagecollector"],
      claimBinderSync: "15s", isAudited: isAudited)
    for folder in ["crds", "snapshot-crds"] { try await plane.kubectl("apply", "-f", "\(repository)/deploy/\(folder)") }
    try await plane.kubectl("create", "namespace", "ycloud-system")
    try await plane.kubectl("apply", "-f", "\(repository)/deploy/storage-class.yaml")
    try await plane.kubectl("wait", "--for=condition=Established", "crd", "--all", "--timeout=60s")
    return try await FleetCloud(plane: plane, ycloud: ycloud, logs: logs)
  }

  private func start(_ name: String, _ arguments: [String]) throws {
    let output = logs.map { "\($0)/\(name).log" }
    let child = try ChildProcess(ycloud, arguments + ["--kubeconfig", plane.kubeconfig], output: output)
    processes.withLock { $0[name] = child }
  }

  private func process(_ name: String) throws -> ChildProcess {
    guard let child = processes.withLock({ $0[name] }), child.isRunning else {
      throw TestEnvironmentError("\(name) does not run; its output: \(output(name).suffix(2000))")
    }
    return child
  }

  private func output(_ name: String) -> String { processes.withLock { $0[name] }?.output ?? "" }

  public func startControllers() throws {
    try start("bm-controller", ["bm-controller", "--log-level", "warning"])
    try start(
      "csi-controller", ["csi-controller", "--pool", pool.path, "--log-level", "warning", "--overcommit-ratio", "1000"])
  }

  /// Requests at the same time of a client that makes many objects.
  public static let workers = 16

  /// Starts a simulated fleet and returns the seconds from the first registration until all hosts are available.
  public func enrol(hosts count: Int, arguments: [String] = []) async throws -> Double {
    try await hosts.waitUntilSynced()
    let begun = Mutex<ContinuousClock.Instant?>(nil)
    hosts.onChange { _ in begun.withLock { if $0 == nil { $0 = .now } } }
    try start(
      "simulate",
      [
        "simulate", "--hosts", "\(count)", "--pool", pool.path, "--bmc-delay", "0.01,0.02,0.2", "--dpu-delay",
        "0.002,0.005,0.02", "--power-on-delay", "0.05,0.1,0.2", "--guest-delay", "0.1,0.2,0.3",
      ] + arguments)
    try await wait("all hosts are available", minutes: 10) {
      self.hosts.count == count && self.hosts.unordered().allSatisfy { $0.status?.phase == .available }
    }
    return begun.withLock { $0 }.map { $0.duration(to: .now) / .seconds(1) } ?? 0
  }

  /// More hosts, whose BMCs never answer.
  public func startStuckHosts(_ count: Int) throws {
    try start(
      "stuck", ["simulate", "--hosts", "\(count)", "--prefix", "stuck", "--faults", "stuck=\(count)"])
  }

  private func wait(_ what: String, minutes: Int, _ condition: @escaping @Sendable () -> Bool) async throws {
    do {
      try await eventually(within: .seconds(60 * minutes), every: .milliseconds(50), what) { condition() }
    } catch {
      for name in ["bm-controller", "csi-controller", "simulate"] { print("\(name): \(output(name).suffix(1500))") }
      var phases: [String: Int] = [:]
      for host in hosts.unordered() { phases["host " + (host.status?.phase?.rawValue ?? "none"), default: 0] += 1 }
      for machine in machines.unordered() {
        phases["machine " + (machine.status?.phase?.rawValue ?? "none"), default: 0] += 1
      }
      print(phases)
      if let late = machines.unordered().first(where: { $0.status?.phase != .running }) {
        print("\(late.key): \(late.status?.message ?? "")")
      }
      throw error
    }
  }

  private func apply(_ number: Int) async throws {
    _ = try await client.create(
      BareMetalMachine(
        metadata: ObjectMeta(name: "m-\(number)", namespace: "default"),
        spec: .init(
          disks: [
            .init(name: "root", bootOrder: 1, template: .init(size: "1Mi", storageClassName: Self.storageClass))
          ],
          cloudInit: .init(userData: "#cloud-config\n"))))
  }

  private func areRunning(_ numbers: Range<Int>) -> Bool {
    let running = machines.unordered().count { $0.status?.phase == .running }
    guard running >= numbers.count else { return false }
    return numbers.allSatisfy { machines.get(name: "m-\($0)", namespace: "default")?.status?.phase == .running }
  }

  public func startMachines(_ numbers: Range<Int>) async throws -> Double {
    let start = ContinuousClock.now
    try await concurrently(numbers.count, workers: Self.workers) {
      try await self.apply(numbers.lowerBound + $0)
    }
    try await wait("all machines run", minutes: 10) { self.areRunning(numbers) }
    return start.duration(to: .now) / .seconds(1)
  }

  /// The own share of starts one after the other, of which 95 % are not longer.
  public func singles(_ count: Int, from first: Int) async throws -> Double {
    var own: [Double] = []
    for number in first..<(first + count) {
      try await apply(number)
      try await wait("machine \(number) runs", minutes: 2) { self.areRunning(number..<(number + 1)) }
      if let timeline = machines.get(name: "m-\(number)", namespace: "default")?.status?.timeline,
        let seconds = timeline.ownSeconds
      {
        own.append(seconds)
      }
    }
    return own.sorted()[max(0, Int((0.95 * Double(own.count)).rounded(.up)) - 1)]
  }

  public func deleteMachines() async throws -> Double {
    let names = machines.unordered().map(\.key.name)
    let start = ContinuousClock.now
    try await concurrently(names.count, workers: Self.workers) {
      try await self.client.delete(BareMetalMachine.self, name: names[$0], namespace: "default")
    }
    try await wait("all machines are gone", minutes: 10) { self.machines.count == 0 }
    return start.duration(to: .now) / .seconds(1)
  }

  /// Signs of life, questions, and what the API server writes about itself.
  private static let uncounted: Set<Substring> = [
    "leases", "subjectaccessreviews", "tokenreviews", "endpoints", "endpointslices",
  ]

  public func writes() async throws -> Writes {
    var counts: [String: Int] = [:]
    for line in try await plane.kubectl("get", "--raw", "/metrics").split(separator: "\n")
    where line.hasPrefix("apiserver_request_total{") {
      func label(_ name: String) -> Substring {
        guard let start = line.range(of: "\(name)=\"") else { return "" }
        return line[start.upperBound...].prefix { $0 != "\"" }
      }
      let verb = label("verb")
      let resource = label("resource")
      guard ["POST", "PUT", "PATCH", "DELETE", "APPLY"].contains(verb),
        !Self.uncounted.contains(resource),
        let count = line.split(separator: " ").last.flatMap({ Double($0) })
      else { continue }
      let sub = label("subresource")
      counts["\(verb) \(resource)\(sub.isEmpty ? "" : "/\(sub)") \(label("code"))", default: 0] += Int(count)
    }
    return Writes(counts: counts)
  }

  /// Writes by author, verb, resource and status code, since the plane began; it has to be audited.
  public func authors() throws -> Writes {
    var counts: [String: Int] = [:]
    let text = try String(contentsOfFile: plane.auditLog, encoding: .utf8)
    if let logs { try text.write(toFile: "\(logs)/audit.log", atomically: true, encoding: .utf8) }
    for line in text.split(separator: "\n") {
      // The last line may be one that is just being written.
      guard let event = try? JSONValue.parse(Array(line.utf8)), let verb = event["verb"]?.stringValue,
        let target = event["objectRef"], let resource = target["resource"]?.stringValue,
        !Self.uncounted.contains(resource[...])
      else { continue }
      let author = (event["userAgent"]?.stringValue ?? "?").prefix { $0 != "/" && $0 != " " }
      let sub = target["subresource"]?.stringValue.map { "/\($0)" } ?? ""
      counts["\(author)  \(verb) \(resource)\(sub) \(event["responseStatus"]?["code"]?.intValue ?? 0)", default: 0] += 1
    }
    return Writes(counts: counts)
  }

  public struct Cost: Sendable {
    /// Percent of a core.
    public var bmController: Double
    public var csiController: Double
    /// MiB, proportional set size.
    public var memory: Double
    public var writes: Int
  }

  public func idle(for seconds: Double) async throws -> Cost {
    // What was under way comes to rest first.
    try await Task.sleep(for: .seconds(20))
    let before = (try await writes().total, try ticks("bm-controller"), try ticks("csi-controller"))
    try await Task.sleep(for: .seconds(seconds))
    let after = (try await writes().total, try ticks("bm-controller"), try ticks("csi-controller"))
    let share = 100 / seconds / Double(sysconf(Int32(_SC_CLK_TCK)))
    return Cost(
      bmController: Double(after.1 - before.1) * share, csiController: Double(after.2 - before.2) * share,
      memory: try memory("bm-controller"), writes: after.0 - before.0)
  }

  private func ticks(_ name: String) throws -> Int {
    let text = try String(contentsOfFile: "/proc/\(try process(name).pid)/stat", encoding: .utf8)
    let fields = text[(text.lastIndex(of: ")") ?? text.startIndex)...].split(separator: " ")
    return (Int(fields[12]) ?? 0) + (Int(fields[13]) ?? 0)
  }

  private func memory(_ name: String) throws -> Double {
    let text = try String(contentsOfFile: "/proc/\(try process(name).pid)/smaps_rollup", encoding: .utf8)
    for line in text.split(separator: "\n") where line.hasPrefix("Pss:") {
      return (line.split(separator: " ").compactMap { Double($0) }.first ?? 0) / 1024
    }
    return 0
  }

  public func stop() async throws {
    for name in ["stuck", "simulate"] {
      guard let child = processes.withLock({ $0[name] }) else { continue }
      child.signal(SIGTERM)
      _ = try? await child.waitForExit(within: .seconds(90))
    }
    caches.cancel()
    try await client.shutdown()
  }
}
