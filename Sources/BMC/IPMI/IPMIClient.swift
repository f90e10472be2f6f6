import Deadlines
import Subprocess
import SystemPackage

/// A `BMC` over IPMI 2.0 (RMCP+), through the program `ipmitool`.
///
/// The password goes to ipmitool on its standard input (`-f /dev/stdin`), so that neither its arguments nor its
/// environment nor any file holds it.
final class IPMIClient: BMC {
  let address: BMCAddress
  private let credentials: BMCCredentials
  private let endpoint: BMCEndpoint
  private let limits: BMCLimits

  init(address: BMCAddress, credentials: BMCCredentials, endpoint: BMCEndpoint, limits: BMCLimits) {
    self.address = address
    self.credentials = credentials
    self.endpoint = endpoint
    self.limits = limits
  }

  func power() async throws -> PowerState {
    let operation = "read power of \(address)"
    return IPMIOutput.power(try await succeed(["chassis", "power", "status"], operation: operation))
  }

  func setPower(_ action: PowerAction) async throws {
    let operation = "\(action.rawValue) of \(address)"
    let verb: String
    switch action {
    case .on: verb = "on"
    case .forceOff: verb = "off"
    case .gracefulShutdown: verb = "soft"
    case .forceRestart: verb = "reset"
    case .powerCycle: verb = "cycle"
    case .gracefulRestart:
      throw BMCError(.unsupported, operation: operation, message: "IPMI has no restart by the operating system")
    }
    _ = try await succeed(["chassis", "power", verb], operation: operation)
  }

  func inventory() async throws -> HardwareInventory {
    let operation = "read the inventory of \(address)"
    var inventory = HardwareInventory()
    IPMIOutput.addController(try await succeed(["mc", "info"], operation: operation), to: &inventory)
    // Small BMCs have no FRU 0: then there is nothing to add.
    let fru = try await run(["fru", "print", "0"], operation: operation)
    if fru.isSuccess { IPMIOutput.addFRU(fru.output, to: &inventory) }
    return inventory
  }

  func setBootOverride(_ override: BootOverride) async throws {
    let operation = "set the boot source of \(address)"
    let device: String
    switch override.source {
    case .none: device = "none"
    case .disk: device = "disk"
    case .network: device = "pxe"
    case .cdrom: device = "cdrom"
    case .firmwareSetup: device = "bios"
    case .usb:
      throw BMCError(.unsupported, operation: operation, message: "IPMI has no boot from USB")
    }
    var options: [String] = []
    if override.duration == .continuous { options.append("persistent") }
    if override.firmware == .uefi { options.append("efiboot") }
    var arguments = ["chassis", "bootdev", device]
    if !options.isEmpty { arguments.append("options=" + options.joined(separator: ",")) }
    _ = try await succeed(arguments, operation: operation)
  }

  // MARK: - Running ipmitool

  private struct Answer: Sendable {
    let isSuccess: Bool
    let output: String
    let errors: String
  }

  private func succeed(_ arguments: [String], operation: String) async throws -> String {
    let answer = try await run(arguments, operation: operation)
    guard answer.isSuccess else {
      throw IPMIOutput.refusal(answer.errors, operation: operation)
    }
    return answer.output
  }

  /// Runs one command in its turn; failures of the session are thrown, failures of the command are returned.
  private func run(_ arguments: [String], operation: String) async throws -> Answer {
    let answer: Answer
    do {
      answer = try await endpoint.turnstile.withTurn {
        try self.endpoint.check(self.credentials, operation: operation)
        let answer = try await withTimeLimit(self.limits.request) { try await self.spawn(arguments) }
        guard !answer.isSuccess, let failure = IPMIOutput.sessionFailure(answer.errors) else { return answer }
        throw self.error(failure, operation: operation)
      }
    } catch Turnstile.Refusal.full {
      throw BMCError(
        .busy, operation: operation, message: "more than \(limits.waiting) requests wait for this BMC already",
        retryAfter: .seconds(5))
    } catch let error as TimeLimitExceeded {
      throw BMCError(
        .timeout, operation: operation, message: "no answer from \(address.endpoint) within \(error.limit)",
        cause: error
      )
    } catch let error as SubprocessError {
      throw BMCError(
        .local, operation: operation, message: "ipmitool cannot be run; install the package ipmitool", cause: error)
    }
    return answer
  }

  private func spawn(_ arguments: [String]) async throws -> Answer {
    // -N and -R bound ipmitool's own waiting; -v tells a wrong password from a silent BMC.
    let seconds = max(1, Int(limits.connect.components.seconds) / 2)
    let session = [
      "-v", "-I", "lanplus", "-C", String(address.cipherSuite), "-H", address.host, "-p", String(address.port),
      "-U", credentials.username, "-L", "ADMINISTRATOR", "-N", String(seconds), "-R", "2", "-f", "/dev/stdin",
    ]
    var options = PlatformOptions()
    options.teardownSequence = [.send(signal: .kill, allowedDurationToNextStep: .zero)]
    let result = try await Subprocess.run(
      .name("ipmitool"), arguments: Arguments(session + arguments),
      environment: .inherit.updating(["LC_ALL": "C"]), platformOptions: options,
      input: .string(credentials.password + "\n"), output: .string(limit: 256 << 10), error: .string(limit: 256 << 10))
    return Answer(
      isSuccess: result.terminationStatus == .exited(0), output: result.standardOutput,
      errors: result.standardError)
  }

  private func error(_ failure: IPMIOutput.SessionFailure, operation: String) -> BMCError {
    switch failure {
    case .password, .username:
      return endpoint.refused(credentials, locked: false, for: limits.refusedCredentials, operation: operation)
    case .silent:
      return BMCError(
        .unreachable, operation: operation,
        message: "no IPMI answer from \(address.endpoint); check the address, and that IPMI over LAN is enabled")
    case .name:
      return BMCError(
        .unreachable, operation: operation, message: "the name \(address.host) cannot be resolved")
    case .cipher:
      return BMCError(
        .unsupported, operation: operation,
        message: "the BMC refuses cipher suite \(address.cipherSuite); try another with ?cipher=3 or ?cipher=17")
    case .privilege:
      return BMCError(
        .forbidden, operation: operation, message: "the account '\(credentials.username)' is no administrator")
    case .resources:
      return BMCError(
        .busy, operation: operation, message: "the BMC has no free session", retryAfter: .seconds(30))
    case .other(let text):
      return BMCError(.failed, operation: operation, message: "no IPMI session: \(text)")
    }
  }
}
