import BMC
import BareMetal
package import IaaS
package import Kubernetes

/// Whose screen may be looked at, and what is told where there is no picture. Pure.
package enum ScreenshotVerb {
  /// The boot of a machine that a picture is of.
  package struct Subject: Sendable, Hashable {
    package let host: String
    package let machineUID: String
    package let bootedAt: MicroTimestamp
  }

  /// The screen that is the machine's now.
  ///
  /// To be asked before and after the picture is taken: with two equal answers the host was the machine's in between, and
  /// nobody else's screen is shown.
  /// - Parameter host: the machine's, as the API server has it.
  /// - Throws: `APIFailure` 409 where the machine has none that is certainly its own, 503 where its BMC must not be asked.
  package static func subject(_ machine: BareMetalMachine, on host: BareMetalHost) throws(APIFailure) -> Subject {
    let key = machine.key
    guard let uid = machine.metadata.uid, host.status?.claim?.uid == uid else {
      throw .conflict(key.name, "machine \(key) does not hold its host any more")
    }
    // Before, it may still show what the host's last machine left.
    guard let bootedAt = machine.status?.bootedAt else {
      throw .conflict(
        key.name,
        "machine \(key) is not on (\(machine.status?.message ?? "stopped")); its screen shows nothing: start it")
    }
    // bm-controller goes on with the account before, which only it knows; one more refusal may lock either of them out.
    if host.status?.conditions?.condition(BareMetalHost.ConditionType.credentials)?.status == .false {
      throw noAccess(key, host.key.name)
    }
    return Subject(host: host.key.name, machineUID: uid, bootedAt: bootedAt)
  }

  /// What a caller is told of a failure: nothing of where the BMC is, or of its account.
  package static func failure(_ error: any Error, machine key: ObjectKey, host: String) -> APIFailure {
    let console = "look at its console: bmctl console \(key.name)"
    switch error {
    case let error as APIFailure: return error
    case let error as KubernetesError: return APIFailure(error, machine: key.name)
    case is BareMetalError: return noAccess(key, host)
    case let error as BMCError:
      switch error.code {
      case .unsupported:
        return APIFailure(
          501, "NotImplemented",
          "the BMC of host \(host) gives no pictures of the screen, so that there is none of machine \(key); \(console)",
          machine: key.name)
      case .rejected where error.isStateRefusal:
        return .conflict(key.name, "machine \(key) is off, so that its screen shows nothing; start it first")
      case .busy:
        return APIFailure(
          429, "TooManyRequests", "the BMC of host \(host) is busy; try again", machine: key.name, retryAfterSeconds: 1)
      case .timeout:
        return APIFailure(
          504, "Timeout", "the BMC of host \(host) gave no picture of machine \(key) in time; try again, or \(console)",
          machine: key.name)
      case .unreachable:
        return APIFailure(
          503, "ServiceUnavailable",
          "bm-api cannot reach the BMC of host \(host): an operator sees to the BMC, and to bm-api's way to it; \(console)",
          machine: key.name)
      case .unauthorized, .lockedOut, .forbidden, .certificate, .address, .local: return noAccess(key, host)
      case .protocolError, .rejected, .failed:
        return APIFailure(
          500, "InternalError",
          "the BMC of host \(host) gave no picture of machine \(key); bm-api's log tells why; \(console)",
          machine: key.name)
      }
    case is CancellationError: return .unavailable("bm-api is being stopped; try again")
    default:
      return APIFailure(
        500, "InternalError", "there is no picture of machine \(key); bm-api's log tells why", machine: key.name)
    }
  }

  private static func noAccess(_ key: ObjectKey, _ host: String) -> APIFailure {
    APIFailure(
      503, "ServiceUnavailable",
      "bm-api cannot sign in to the BMC of host \(host), which machine \(key) is on: an operator corrects the host's "
        + "account, address or certificate (kubectl describe bmh \(host))", machine: key.name)
  }
}
