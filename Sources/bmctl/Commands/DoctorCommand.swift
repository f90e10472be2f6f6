import ArgumentParser
import IaaS
package import JSON
package import Kubernetes

struct DoctorCommand: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "doctor", abstract: "Check an installation, and say what to do.",
    discussion: """
      Looks at the API groups, definitions, roles, leases of the controllers and handlers, hosts and the storage class.
      Changes nothing. For administrators: whoever may see less learns less. Exits with 1 where something is broken.
      """)

  @OptionGroup var connection: ConnectionOptions

  func run() async throws {
    try await withConnection(connection) { connection in
      let findings = try await Examination(client: connection.client, now: .now()).findings()
      for line in Finding.lines(findings, style: Style.standardOutput()) { Output.line(line) }
      let broken = findings.filter { $0.state == .broken }
      guard broken.isEmpty else {
        throw CommandError(.failure, "doctor", "\(broken.count) of \(findings.count) checks found something broken")
      }
    }
  }
}

/// What one check found.
package struct Finding: Sendable, Hashable {
  package enum State: String, Sendable, Hashable {
    case fine = "ok"
    case doubtful = "??"
    case broken = "!!"
  }

  package var state: State
  package var subject: String
  package var message: String
  package var remedy: String?

  package init(_ state: State, _ subject: String, _ message: String, remedy: String? = nil) {
    self.state = state
    self.subject = subject
    self.message = message
    self.remedy = remedy
  }

  package static func lines(_ findings: [Finding], style: Style) -> [String] {
    let width = findings.reduce(0) { max($0, TextWidth.columns($1.subject)) }
    return findings.flatMap { finding in
      let color: Style.Color =
        switch finding.state {
        case .fine: .green
        case .doubtful: .yellow
        case .broken: .red
        }
      let subject = TextWidth.padded(TextWidth.printable(finding.subject), to: width)
      let line = "\(style.paint(finding.state.rawValue, color))  \(subject)  \(TextWidth.printable(finding.message))"
      return [line] + (finding.remedy.map { ["      \(TextWidth.printable($0))"] } ?? [])
    }
  }

  /// A lease, and whether its holder is alive.
  /// - Parameter silentAfter: seconds, for a lease that does not say.
  package static func lease(
    _ subject: String, _ lease: JSONValue?, now: MicroTimestamp, silentAfter: Int64, remedy: String
  ) -> Finding {
    guard let lease else { return Finding(.broken, subject, "has never run: there is no lease", remedy: remedy) }
    let spec = lease["spec"]
    guard let holder = spec?["holderIdentity"]?.stringValue, !holder.isEmpty,
      let renewed = spec?["renewTime"]?.stringValue.flatMap({ MicroTimestamp($0) })
    else { return Finding(.broken, subject, "nobody holds its lease", remedy: remedy) }
    let age = (now.microseconds - renewed.microseconds) / 1_000_000
    let limit = max(spec?["leaseDurationSeconds"]?.int64Value ?? 0, silentAfter)
    guard age <= limit else {
      return Finding(
        .broken, subject, "\(holder) was last heard of \(DurationText.age(seconds: Double(age))) ago", remedy: remedy)
    }
    return Finding(.fine, subject, "\(holder) was heard of \(max(0, age)) s ago")
  }

  /// A host as a whole.
  package static func host(_ host: JSONValue) -> Finding {
    let subject = "host \(host["metadata"]?["name"]?.stringValue ?? "")"
    let status = host["status"]
    let phase = status?["phase"]?.stringValue ?? "not seen yet"
    let trouble = (status?["conditions"]?.arrayValue ?? []).first {
      $0["status"]?.stringValue == "False" && ["BMCReachable", "DPUReady"].contains($0["type"]?.stringValue ?? "")
    }
    if let trouble {
      return Finding(
        .broken, subject, "\(phase): \(trouble["message"]?.stringValue ?? trouble["reason"]?.stringValue ?? "")",
        remedy: "bmctl describe \(subject)")
    }
    return Finding(phase == "Error" ? .broken : .fine, subject, phase)
  }
}

/// The checks, against a cluster.
struct Examination {
  let client: KubernetesClient
  let now: MicroTimestamp

  func findings() async throws -> [Finding] {
    var findings = [try await version()]
    findings += try await groups()
    findings += try await roles()
    findings += try await leases()
    findings += try await hosts()
    findings.append(try await storageClass())
    return findings
  }

  private func version() async throws -> Finding {
    let version = try await client.version()["gitVersion"]?.stringValue ?? "of an unknown version"
    return Finding(.fine, "API server", version)
  }

  /// nil where there is none; a refusal is a finding of its own.
  private func optional(_ subject: String, _ path: String) async throws -> Result<JSONValue?, Refusal> {
    do {
      return .success(try await client.request(method: "GET", path: path))
    } catch let error as KubernetesError {
      switch error.code {
      case .notFound: return .success(nil)
      case .forbidden:
        return .failure(Refusal(finding: Finding(.doubtful, subject, "you may not look at it: \(error.message)")))
      case .unavailable where error.httpStatus != nil:
        return .failure(Refusal(finding: Finding(.broken, subject, error.message)))
      default: throw error
      }
    }
  }

  private struct Refusal: Error { var finding: Finding }

  private func groups() async throws -> [Finding] {
    var findings: [Finding] = []
    let wanted = [
      (
        BareMetalMachine.definition.apiVersion, ["baremetalhosts", "baremetalmachines"],
        "kubectl apply --server-side -f deploy/crds"
      ),
      ("snapshot.storage.k8s.io/v1", ["volumesnapshots"], "kubectl apply --server-side -f deploy/snapshot-crds"),
      (
        "\(Names.subresourceGroup)/v1", ["baremetalmachines/console"],
        "deploy/cluster/bm-api.yaml; kubectl describe apiservice v1.\(Names.subresourceGroup) tells why it is not available"
      ),
    ]
    for (group, resources, remedy) in wanted {
      let subject = "API \(group)"
      switch try await optional(subject, "/apis/\(group)") {
      case .failure(let refusal):
        var finding = refusal.finding
        finding.remedy = remedy
        findings.append(finding)
      case .success(let list):
        let served = Set((list?["resources"]?.arrayValue ?? []).compactMap { $0["name"]?.stringValue })
        let missing = resources.filter { !served.contains($0) }
        findings.append(
          missing.isEmpty
            ? Finding(.fine, subject, "served")
            : Finding(.broken, subject, "not served: \(missing.joined(separator: ", "))", remedy: remedy))
      }
    }
    return findings
  }

  private func roles() async throws -> [Finding] {
    var findings: [Finding] = []
    for role in [
      "ycloud:bm-controller", "ycloud:csi-controller", "ycloud:bm-handler", "ycloud:bm-api", "ycloud:machines-edit",
    ] {
      let subject = "role \(role)"
      switch try await optional(subject, "/apis/rbac.authorization.k8s.io/v1/clusterroles/\(role)") {
      case .failure(let refusal): findings.append(refusal.finding)
      case .success(nil):
        findings.append(
          Finding(.broken, subject, "is missing", remedy: "kubectl apply --server-side -f deploy/rbac"))
      case .success: break
      }
    }
    if findings.isEmpty { findings.append(Finding(.fine, "roles", "all there")) }
    return findings
  }

  private func leases() async throws -> [Finding] {
    var findings: [Finding] = []
    for name in ["bm-controller", "csi-controller"] {
      let path = "/apis/coordination.k8s.io/v1/namespaces/\(Names.systemNamespace)/leases/\(name)"
      switch try await optional(name, path) {
      case .failure(let refusal): findings.append(refusal.finding)
      case .success(let lease):
        findings.append(
          Finding.lease(
            name, lease, now: now, silentAfter: 20,
            remedy: "look at its log: kubectl -n \(Names.systemNamespace) logs deployment/\(name), or .ycloud/logs"))
      }
    }
    return findings
  }

  private func hosts() async throws -> [Finding] {
    let hosts: [DynamicObject]
    do {
      hosts = try await client.listAll(BareMetalHost.definition).items
    } catch let error as KubernetesError {
      guard error.code == .forbidden || error.code == .notFound else { throw error }
      return [Finding(.doubtful, "hosts", "cannot be looked at: \(error.message)")]
    }
    guard !hosts.isEmpty else {
      return [Finding(.doubtful, "hosts", "there are none", remedy: "bmctl host add, see docs/how-to/hosts.md")]
    }
    var findings: [Finding] = []
    for host in hosts {
      findings.append(Finding.host(host.content))
      let name = host.name ?? ""
      let path = "/apis/coordination.k8s.io/v1/namespaces/\(Names.systemNamespace)/leases/bm-handler-\(name)"
      switch try await optional("handler of \(name)", path) {
      case .failure(let refusal): findings.append(refusal.finding)
      case .success(let lease):
        findings.append(
          Finding.lease(
            "handler of \(name)", lease, now: now, silentAfter: 60,
            remedy: "bm-handler has to run on the DPU \(host["spec"]?["dpu"]?["node"]?.stringValue ?? "")"))
      }
    }
    return findings
  }

  private func storageClass() async throws -> Finding {
    let subject = "storage class ycloud"
    switch try await optional(subject, "/apis/storage.k8s.io/v1/storageclasses/ycloud") {
    case .failure(let refusal): return refusal.finding
    case .success(nil):
      return Finding(
        .broken, subject, "is missing", remedy: "kubectl apply --server-side -f deploy/storage-class.yaml")
    case .success(let found):
      let driver = found?["provisioner"]?.stringValue ?? ""
      return driver == Names.storageDriver
        ? Finding(.fine, subject, "there")
        : Finding(.broken, subject, "is another driver's (\(driver))", remedy: "name another class in your claims")
    }
  }
}
