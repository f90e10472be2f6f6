package import IaaS
import JSON
package import Kubernetes
package import Logging

#if canImport(FoundationEssentials)
  import FoundationEssentials
#else
  import Foundation
#endif

/// Registers a fleet's hosts at the API server, and removes them.
package struct FleetRegistry: Sendable {
  package static let label = "iaas.yusur.io/simulated"

  let client: KubernetesClient
  let configuration: FleetConfiguration
  let logger: Logger

  package init(client: KubernetesClient, configuration: FleetConfiguration, logger: Logger) {
    self.client = client
    self.configuration = configuration
    self.logger = logger
  }

  static func selector(_ configuration: FleetConfiguration) -> String { "\(label)=\(configuration.prefix)" }

  static func secretName(_ host: String) -> String { "\(host)-bmc" }

  /// The account of a BMC, as a secret.
  package static func secret(host: String, prefix: String, username: String, password: String) -> Secret {
    var metadata = ObjectMeta(name: secretName(host), namespace: Names.systemNamespace)
    metadata.labels = [label: prefix]
    return Secret(
      metadata: metadata, type: "kubernetes.io/basic-auth",
      data: ["username": Data(username.utf8), "password": Data(password.utf8)])
  }

  package static func host(_ name: String, prefix: String, number: Int, port: Int) -> BareMetalHost {
    var metadata = ObjectMeta(name: name)
    metadata.labels = [label: prefix]
    return BareMetalHost(
      metadata: metadata,
      spec: .init(
        bmc: .init(
          address: "redfish+https://\(FleetListener.address(of: number)):\(port)/redfish/v1/Systems/1",
          credentialsSecretRef: .init(name: secretName(name)), insecureSkipVerify: true),
        dpu: .init(node: "dpu-\(name)")))
  }

  /// Makes secrets and hosts. What an earlier run has left under the same label is brought up to date.
  func register(port: Int, username: String, password: String) async throws {
    try await refuseOthers()
    try await forEach { number in
      let name = configuration.name(of: number)
      let secret = Self.secret(host: name, prefix: configuration.prefix, username: username, password: password)
      try await put(secret) { _ = try await client.update(secret) }
      let host = Self.host(name, prefix: configuration.prefix, number: number, port: port)
      try await put(host) {
        _ = try await client.mergePatch(
          BareMetalHost.self, name: name,
          patch: ["spec": ["bmc": ["address": .string(host.spec.bmc.address), "insecureSkipVerify": true]]])
      }
    }
  }

  private func put(_ object: some KubernetesObject, orElse update: () async throws -> Void) async throws {
    do {
      _ = try await client.create(object)
    } catch let error as KubernetesError where error.code == .alreadyExists {
      try await update()
    }
  }

  /// Hosts of these names that are somebody else's are left alone.
  private func refuseOthers() async throws {
    let names = Set((0..<configuration.hosts).map { configuration.name(of: $0) })
    let present = try await client.listAll(BareMetalHost.self).items
    let foreign = present.filter { host in
      names.contains(host.key.name) && host.metadata.labels?[Self.label] != configuration.prefix
    }
    guard let first = foreign.first else { return }
    throw FleetError(
      "register the simulated hosts",
      "there is a host \(first.key.name) that no simulation has made; choose another --prefix than "
        + "'\(configuration.prefix)'")
  }

  /// Removes hosts, and when they are gone, their secrets and leases. Returns how many hosts are left.
  func remove(isGone: @Sendable (String) -> Bool) async throws -> Int {
    try await forEach { number in
      try await ignoringAbsence {
        try await client.delete(BareMetalHost.self, name: configuration.name(of: number))
      }
    }
    let deadline = ContinuousClock.now + .seconds(configuration.removalTime)
    var left = (0..<configuration.hosts).filter { !isGone(configuration.name(of: $0)) }
    while !left.isEmpty, ContinuousClock.now < deadline {
      try await Task.sleep(for: .milliseconds(200))
      left.removeAll { isGone(configuration.name(of: $0)) }
    }
    let leftNumbers = Set(left)
    try await forEach { number in
      guard !leftNumbers.contains(number) else { return }
      let name = configuration.name(of: number)
      try await ignoringAbsence {
        try await client.delete(Secret.self, name: Self.secretName(name), namespace: Names.systemNamespace)
      }
      try await ignoringAbsence {
        try await client.delete(Lease.self, name: FleetHeartbeats.leaseName(name), namespace: Names.systemNamespace)
      }
    }
    return left.count
  }

  private func ignoringAbsence(_ body: () async throws -> Void) async throws {
    do {
      try await body()
    } catch let error as KubernetesError where error.code == .notFound {}
  }

  /// Runs `body` for every host, several at a time.
  private func forEach(_ body: @escaping @Sendable (Int) async throws -> Void) async throws {
    try await withThrowingTaskGroup(of: Void.self) { group in
      for number in 0..<configuration.hosts {
        if number >= configuration.registrationWorkers { try await group.next() }
        group.addTask { try await body(number) }
      }
      try await group.waitForAll()
    }
  }
}
