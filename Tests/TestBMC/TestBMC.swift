package import BMC
package import JSON
import Logging
package import SoftHost
import Synchronization
import Telemetry
import TestSupport
package import WebServer

/// A chassis without a machine: it does at once what it is told.
package actor PaperChassis: ChassisControl {
  private var state = ChassisSnapshot(
    name: "paper-1", uuid: "4c4c4544-0000-4000-8000-000000000001", power: .off, memoryMiB: 2048, processors: 4,
    nics: [ChassisSnapshot.NIC(id: "nic-00-eth0", mac: "02:00:00:00:00:01")])
  private var screen: [UInt8] = []

  package init() {}

  /// From now on it has a screen, which shows this.
  package func show(_ picture: [UInt8]) {
    screen = picture
    state.hasScreen = true
  }

  package func screenshot() throws -> [UInt8] {
    guard state.power == .on else {
      throw SoftHostError(.conflict, operation: "take a picture", message: "the server is off")
    }
    return screen
  }

  package func snapshot() -> ChassisSnapshot { state }

  package func reset(_ type: Chassis.ResetType) throws {
    switch type {
    case .on: state.power = .on
    case .forceOff, .gracefulShutdown: state.power = .off
    default:
      guard state.power == .on else {
        throw SoftHostError(.conflict, operation: type.rawValue, message: "the server is off")
      }
    }
  }

  package func setBoot(_ boot: BootSetting) { state.boot = boot }
}

/// What stands between a client and a good BMC in a test: sees every request, may answer instead of the BMC or change
/// its answer.
package final class Meddler: Sendable {
  package typealias Meddling =
    @Sendable (RedfishRequest, _ next: @Sendable (RedfishRequest) async -> RedfishReply) async
    -> RedfishReply

  private struct State {
    var requests: [RedfishRequest] = []
    var meddling: Meddling?
  }
  private let state = Mutex(State())

  package init() {}

  package var requests: [RedfishRequest] { state.withLock { $0.requests } }
  package func meddle(_ meddling: Meddling?) { state.withLock { $0.meddling = meddling } }

  /// Replaces the system's document.
  package func changeSystem(_ change: @escaping @Sendable (inout JSONValue) -> Void) {
    meddle { request, next in
      var reply = await next(request)
      if request.method == "GET", request.path == "/redfish/v1/Systems/1", var body = reply.body {
        change(&body)
        reply.body = body
      }
      return reply
    }
  }

  fileprivate func respond(
    to request: RedfishRequest, _ next: @escaping @Sendable (RedfishRequest) async -> RedfishReply
  ) async -> RedfishReply {
    let meddling = state.withLock { state in
      state.requests.append(request)
      return state.meddling
    }
    guard let meddling else { return await next(request) }
    return await meddling(request, next)
  }

  /// Requests that tried a password.
  package var passwordsTried: Int {
    requests.count { $0.headers["authorization"] != nil || ($0.method == "POST" && $0.path.hasSuffix("/Sessions")) }
  }
}

package let rightCredentials = BMCCredentials(username: "admin", password: "correct horse")

/// Runs our own BMC for a chassis, with a meddler before it, while `body` runs. It takes `rightCredentials`.
package func withTestBMC(
  of chassis: some ChassisControl, tls: TLSFiles? = nil, sessionTimeout: Duration = .seconds(60),
  _ body: @escaping @Sendable (BMCAddress, Meddler) async throws -> Void
) async throws {
  try await withTemporaryDirectory { directory in
    let account = "\(rightCredentials.username):\(rightCredentials.password)\n"
    let file = try directory.write("accounts", account, mode: 0o600)
    let meddler = Meddler()
    let logger = Logger(label: "test")
    let service = RedfishService(
      chassis: chassis, accounts: Accounts(path: file), sessionTimeout: sessionTimeout,
      metrics: SoftHostMetrics(MetricsRegistry()), logger: logger)
    let (ports, port) = AsyncStream.makeStream(of: Int.self)
    let server = WebServer(
      host: "127.0.0.1", port: 0, tls: tls,
      router: RedfishRouter.make { await meddler.respond(to: $0) { await service.respond(to: $0) } },
      logger: logger
    ) { port.yield($0) }
    try await withThrowingTaskGroup(of: Void.self) { group in
      group.addTask { try await server.run() }
      group.addTask {
        for await number in ports {
          let scheme = tls == nil ? "redfish+http" : "redfish+https"
          return try await body(try BMCAddress("\(scheme)://127.0.0.1:\(number)"), meddler)
        }
      }
      defer { group.cancelAll() }
      try await group.next()
    }
  }
}

/// The same for a chassis on paper.
package func withTestBMC(
  tls: TLSFiles? = nil, sessionTimeout: Duration = .seconds(60),
  _ body: @escaping @Sendable (BMCAddress, Meddler, PaperChassis) async throws -> Void
) async throws {
  let chassis = PaperChassis()
  try await withTestBMC(of: chassis, tls: tls, sessionTimeout: sessionTimeout) { try await body($0, $1, chassis) }
}

/// Runs `body` with a pool that is shut down afterwards.
package func withPool(
  _ limits: BMCLimits = BMCLimits(), _ body: (BMCClientPool) async throws -> Void
) async throws {
  let pool = BMCClientPool(limits: limits, logger: Logger(label: "test"))
  do {
    try await body(pool)
  } catch {
    try await pool.shutdown()
    throw error
  }
  try await pool.shutdown()
}

package func code(_ body: () async throws -> some Any) async -> BMCError.Code? {
  do {
    _ = try await body()
    return nil
  } catch {
    return (error as? BMCError)?.code
  }
}
