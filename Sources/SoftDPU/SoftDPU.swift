import Glibc
import JSONRPC
public import Logging
public import Telemetry

/// A storage data plane in user space: files in, vhost-user-blk disks out, driven over SPDK's JSON-RPC.
///
/// It takes the place of a DPU's data plane where there is no DPU: every disk is a socket in one directory, which the
/// simulated chassis treats as its PCIe bus. It is event driven; idle, it takes no processor time.
public final class SoftDPU: Sendable {
  public struct Configuration: Sendable, Hashable {
    /// Where SPDK's JSON-RPC is served.
    public var rpcSocket: String
    /// Where each controller has its socket.
    public var vhostDirectory: String
    /// Where the configuration is kept over a restart; nil keeps none.
    public var stateDirectory: String?
    /// How many threads serve I/O: 1 to 64.
    public var reactors: Int
    /// From how many microseconds on a request is kept in the trace of slow ones; 0 keeps none.
    public var slowMicroseconds: UInt64

    /// How many connections each address of NBD and NVMe/TCP has at a time: 1 or more; those beyond are refused.
    public var maximumConnections: Int
    /// How long a connection may take until it has chosen an export or connected a queue.
    public var handshakeTime: Duration

    public init(
      rpcSocket: String, vhostDirectory: String, stateDirectory: String? = nil, reactors: Int = 1,
      slowMicroseconds: UInt64 = 1_000_000, maximumConnections: Int = 4096, handshakeTime: Duration = .seconds(30)
    ) {
      self.rpcSocket = rpcSocket
      self.vhostDirectory = vhostDirectory
      self.stateDirectory = stateDirectory
      self.reactors = reactors
      self.slowMicroseconds = slowMicroseconds
      self.maximumConnections = maximumConnections
      self.handshakeTime = handshakeTime
    }

    fileprivate var limits: ConnectionLimits {
      let (seconds, attoseconds) = handshakeTime.components
      return ConnectionLimits(
        connections: maximumConnections,
        handshakeTime: UInt64(max(0, seconds)) * 1_000_000_000 + UInt64(max(0, attoseconds) / 1_000_000_000))
    }
  }

  /// What `spdk_get_version` answers.
  public static let version = "ycloud softdpu v0.1 (SPDK v26.09 JSON-RPC)"

  private let inventory: Inventory
  private let server: JSONRPCServer
  private let reactors: [Reactor]

  /// Has the registry tell what devices, hosts and front ends do.
  public func addMetrics(to registry: MetricsRegistry) { Metrics(inventory).register(registry) }

  /// Starts the reactors, restores the saved configuration and opens the RPC socket, in this order.
  public init(_ configuration: Configuration, logger: Logger) throws {
    guard (1...64).contains(configuration.reactors) else {
      throw SoftDPUError(
        code: .invalid, operation: "start", message: "reactors: 1 to 64, not \(configuration.reactors)")
    }
    guard configuration.maximumConnections >= 1 else {
      throw SoftDPUError(
        code: .invalid, operation: "start",
        message: "connections of an address: 1 or more, not \(configuration.maximumConnections)")
    }
    try SoftDPU.makeDirectory(configuration.vhostDirectory)
    if let path = configuration.stateDirectory { try SoftDPU.makeDirectory(path) }
    SharedMemoryGuard.install()
    SoftDPU.raiseDescriptorLimit()
    var reactors: [Reactor] = []
    do {
      for number in 0..<configuration.reactors { reactors.append(try Reactor(number: number)) }
    } catch {
      reactors.forEach { $0.stop() }
      throw error
    }
    for reactor in reactors { reactor.meet(reactors) }
    self.reactors = reactors
    inventory = Inventory(
      vhostDirectory: configuration.vhostDirectory, reactors: reactors,
      stateDirectory: configuration.stateDirectory, limits: configuration.limits, logger: logger)
    guard inventory.setSlowThreshold(microseconds: configuration.slowMicroseconds) else {
      reactors.forEach { $0.stop() }
      throw SoftDPUError(code: .invalid, operation: "start", message: "slow requests: at most a day, in microseconds")
    }
    let methods = Methods(inventory: inventory, version: SoftDPU.version)
    server = JSONRPCServer(path: configuration.rpcSocket) { request, reply in methods.handle(request, reply) }
    do {
      try methods.restore()
      try server.start()
      methods.retryUnrestored { [weak server] work in server?.run(work) }
    } catch {
      inventory.close()
      reactors.forEach { $0.stop() }
      inventory.forgetAll()
      throw error
    }
  }

  /// Serves until the task is cancelled; then ends the connections, after the requests that are in flight.
  public func run() async {
    await untilCancelled()
    stop()
  }

  /// Ends everything. Front ends that reconnect find the next process at the same sockets.
  public func stop() {
    server.stop()
    inventory.close()
    for reactor in reactors { reactor.stop() }
    inventory.closeStore()
    inventory.forgetAll()
  }

  /// Has one of the devices read at random places, with `depth` requests of 4 KiB under way, for as many seconds; how
  /// many requests came back. For measurements.
  package func load(_ device: String, depth: Int, seconds: Double) throws -> Int {
    try DeviceLoad.run(inventory.requireDevice(device, "load"), depth: depth, seconds: seconds)
  }

  /// What is lent, and who is connected: nothing of it may stay when all peers are gone.
  package struct Holdings: Sendable, Hashable {
    /// Memory for requests that are under way, in bytes.
    package var buffers = 0
    /// What layers keep of requests, and devices' requests themselves.
    package var frames = 0
    package var requests = 0
    package var hosts = 0
    package var frontEnds = 0

    package var isEmpty: Bool { self == Holdings() }
  }

  /// For tests: a connection that ends gives everything back.
  package var holdings: Holdings {
    var holdings = Holdings()
    let targets = Dictionary(grouping: inventory.devices) { $0.reactor.number }
    for reactor in reactors {
      let devices = targets[reactor.number] ?? []
      let (buffers, frames, requests) = reactor.sync { () -> (Int, Int, Int) in
        let core = unsafe reactor.core
        let requests = devices.reduce(0) { unsafe $0 + Int($1.target.pointee.inflight) }
        return unsafe (core.pointee.buffers.lent, core.pointee.frames.lent, requests)
      }
      holdings.buffers += buffers
      holdings.frames += frames
      holdings.requests += requests
    }
    holdings.hosts = inventory.nvmf.controllers.count
    holdings.frontEnds = inventory.controllers.count { $0.isConnected }
    return holdings
  }

  private func untilCancelled() async {
    let (stream, continuation) = AsyncStream.makeStream(of: Never.self)
    await withTaskCancellationHandler {
      for await _ in stream {}
    } onCancel: {
      continuation.finish()
    }
  }

  /// Each disk takes descriptors for its socket and its queues: as many as the system allows, not the default of 1024.
  private static func raiseDescriptorLimit() {
    var limit = rlimit()
    // SAFETY: the structure lives for the length of the calls.
    guard unsafe getrlimit(__rlimit_resource_t(RLIMIT_NOFILE.rawValue), &limit) == 0 else { return }
    limit.rlim_cur = limit.rlim_max
    _ = unsafe setrlimit(__rlimit_resource_t(RLIMIT_NOFILE.rawValue), &limit)
  }

  private static func makeDirectory(_ path: String) throws(SoftDPUError) {
    guard unsafe mkdir(path, 0o700) != 0, errno != EEXIST else { return }
    throw .system(errno, "make directory \(path)")
  }
}
