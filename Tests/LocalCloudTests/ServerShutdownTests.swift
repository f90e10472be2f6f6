import BMC
import LocalCloud
import Synchronization
import Testing

/// A server that shuts down when it is asked, or not.
private final class AskedServer: BMC {
  enum Kind: Sendable {
    case obedient, deaf, off, unreachable
  }

  let kind: Kind
  private let asked = Mutex<[PowerAction]>([])
  private let readings = Mutex(0)

  init(_ kind: Kind) { self.kind = kind }

  var actions: [PowerAction] { asked.withLock { $0 } }

  func power() async throws -> PowerState {
    if kind == .unreachable { throw BMCError(.unreachable, operation: "read power", message: "nothing answers") }
    guard kind != .off else { return .off }
    guard kind == .obedient, !actions.isEmpty else { return .on }
    // It takes a few looks.
    return readings.withLock { count in
      count += 1
      return count > 3 ? .off : .on
    }
  }

  func setPower(_ action: PowerAction) async throws { asked.withLock { $0.append(action) } }
  func inventory() async throws -> HardwareInventory { HardwareInventory() }
  func setBootOverride(_ override: BootOverride) async throws {}
}

@Suite("Servers before the cloud goes down")
struct ServerShutdownTests {
  @Test("Servers that are on are asked, those that shut down are waited for, and the others end the wait by its limit")
  func shutdown() async throws {
    let lines = Mutex<[String]>([])
    let servers = [AskedServer(.obedient), AskedServer(.deaf), AskedServer(.off), AskedServer(.unreachable)]
    let names = ["obedient", "deaf", "off", "unreachable"]
    let shutdown = ServerShutdown(limit: .seconds(1), readEvery: .milliseconds(5)) { line in
      lines.withLock { $0.append(line) }
    }
    await shutdown.run(zip(names, servers).map { ($0, $1) })
    #expect(servers.map(\.actions) == [[.gracefulShutdown], [.gracefulShutdown], [], []])
    let told = lines.withLock { $0 }
    #expect(told.contains { $0.hasPrefix("server obedient has shut down") })
    #expect(told.contains { $0.hasPrefix("server deaf did not shut down within 1.0 s") })
    #expect(told.contains { $0.contains("unreachable could not be asked") && $0.contains("nothing answers") })
    #expect(!told.contains { $0.contains("server off") })
  }
}
