import AsyncHTTPClient
public import Logging
import NIOCore
import Synchronization

/// Clients of many BMCs, one per address, with what they share: connections, sessions, and the memory of credentials
/// that a BMC refused.
public final class BMCClientPool: Sendable {
  private struct Entry {
    let credentials: BMCCredentials
    let trust: BMCTrust
    let client: any BMC
  }

  private struct State {
    var entries: [BMCAddress: Entry] = [:]
    var endpoints: [String: BMCEndpoint] = [:]
    var isShutDown = false
  }

  private let limits: BMCLimits
  private let logger: Logger
  private let http: HTTPClient
  private let state = Mutex(State())

  public init(limits: BMCLimits = BMCLimits(), logger: Logger) {
    self.limits = limits
    self.logger = logger
    var configuration = HTTPClient.Configuration()
    configuration.redirectConfiguration = .disallow
    configuration.timeout.connect = .nanoseconds(limits.connect.nanoseconds)
    configuration.connectionPool.retryConnectionEstablishment = false
    // Long enough for what belongs together; a thousand connections that are open for nothing are memory, here (100 KB
    // each with TLS) and in the BMCs.
    configuration.connectionPool.idleTimeout = .seconds(2)
    // A BMC is asked one thing at a time; only a sign-out may come beside that. Each pool has room for that many from the
    // beginning.
    configuration.connectionPool.concurrentHTTP1ConnectionsPerHostSoftLimit = 2
    configuration.httpVersion = .http1Only
    http = HTTPClient(eventLoopGroupProvider: .singleton, configuration: configuration)
  }

  /// The client for a BMC. The same arguments give the same client; changed credentials or trust give a new one, before
  /// which `remove` should end the session of the old one.
  ///
  /// Throws `BMCError` where the trust is unusable or the pool is shut down; nothing is sent yet.
  public func client(
    for address: BMCAddress, credentials: BMCCredentials, trust: BMCTrust = .systemRoots
  ) throws -> any BMC {
    try state.withLock { state in
      guard !state.isShutDown else {
        throw BMCError(.local, operation: "talk to \(address)", message: "the BMC client pool is shut down")
      }
      if let entry = state.entries[address], entry.credentials == credentials, entry.trust == trust {
        return entry.client
      }
      let endpoint = state.endpoints[address.endpoint] ?? BMCEndpoint(waiting: limits.waiting)
      state.endpoints[address.endpoint] = endpoint
      let client: any BMC
      switch address.scheme {
      case .redfishHTTPS, .redfishHTTP:
        client = try RedfishClient(
          address: address, credentials: credentials, trust: trust, endpoint: endpoint, http: http, limits: limits,
          logger: logger)
      case .ipmi:
        client = IPMIClient(address: address, credentials: credentials, endpoint: endpoint, limits: limits)
      }
      state.entries[address] = Entry(credentials: credentials, trust: trust, client: client)
      return client
    }
  }

  /// Lets accounts that a BMC has refused be tried again: what it accepts has changed, or somebody says so.
  public func forgetRefusals(_ address: BMCAddress) {
    state.withLock { $0.endpoints[address.endpoint] }?.forgetRefusals()
  }

  /// Forgets the client of a BMC that is gone, and ends its session. What it refused stays remembered for its time.
  public func remove(_ address: BMCAddress) async {
    let client = state.withLock { state in
      let client = state.entries.removeValue(forKey: address)?.client
      let inUse = Set(state.entries.keys.map(\.endpoint))
      state.endpoints = state.endpoints.filter { inUse.contains($0.key) || $0.value.isInUse }
      return client
    }
    await (client as? RedfishClient)?.signOut()
  }

  /// Ends sessions where that is quick, and closes all connections. Clients made by this pool fail from then on.
  public func shutdown() async throws {
    let clients = state.withLock { state in
      defer {
        state.isShutDown = true
        state.entries = [:]
      }
      return state.entries.values.compactMap { $0.client as? RedfishClient }
    }
    await withTaskGroup { group in
      for client in clients { group.addTask { await client.signOut() } }
    }
    try await http.shutdown()
  }
}

extension Duration {
  /// Whole nanoseconds, capped at the range of `Int64`.
  var nanoseconds: Int64 {
    let (seconds, overflow) = components.seconds.multipliedReportingOverflow(by: 1_000_000_000)
    return overflow ? .max : seconds + components.attoseconds / 1_000_000_000
  }
}
