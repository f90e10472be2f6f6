package import IaaS
package import JSON
package import Kubernetes
package import Logging
import Reconciler
package import Telemetry

/// What bm-handler writes at the API server; all that it writes.
package protocol HandlerCluster: Sendable {
  func patchStatus(of attachment: VolumeAttachment, _ patch: JSONValue) async throws
  func removeFinalizer(from attachment: VolumeAttachment) async throws
  func report(_ status: BareMetalHost.DPUStatus, host: String) async throws
}

/// What bm-handler watches: its own host, that host's boot data and attachments. Or those of all hosts, for a process
/// that plays the handlers of many.
package struct HandlerCaches: Sendable {
  private static let hostIndex = "host"

  package let hosts: ObjectCache<BareMetalHost>
  package let bootData: ObjectCache<Secret>
  package let attachments: ObjectCache<VolumeAttachment>

  package init(client: KubernetesClient, host: String, logger: Logger, registry: MetricsRegistry?) {
    hosts = ObjectCache(client: client, fieldSelector: "metadata.name=\(host)", logger: logger, registry: registry)
    bootData = ObjectCache(
      client: client, namespace: Names.systemNamespace, fieldSelector: "metadata.name=\(Names.bootData(host: host))",
      logger: logger, registry: registry)
    attachments = ObjectCache(
      client: client, labelSelector: "\(Names.hostLabel)=\(host)", indexers: Self.attachmentIndexers, logger: logger,
      registry: registry)
  }

  /// The caches for all hosts that have a label with this value, and for the attachments and boot data of all hosts.
  package init(client: KubernetesClient, hostSelector: String, logger: Logger, registry: MetricsRegistry?) {
    hosts = ObjectCache(client: client, labelSelector: hostSelector, logger: logger, registry: registry)
    bootData = ObjectCache(
      client: client, namespace: Names.systemNamespace, labelSelector: Names.hostLabel, logger: logger,
      registry: registry)
    attachments = ObjectCache(
      client: client, labelSelector: Names.hostLabel, indexers: Self.attachmentIndexers, logger: logger,
      registry: registry)
  }

  private static let attachmentIndexers: [String: @Sendable (VolumeAttachment) -> [String]] = [
    hostIndex: { $0.host.map { [$0] } ?? [] }
  ]

  package func attachments(onHost name: String) -> [VolumeAttachment] { attachments.byIndex(Self.hostIndex, name) }
}

package struct KubernetesHandlerCluster: HandlerCluster {
  let client: KubernetesClient
  let caches: HandlerCaches

  package init(client: KubernetesClient, caches: HandlerCaches) {
    self.client = client
    self.caches = caches
  }

  package func patchStatus(of attachment: VolumeAttachment, _ patch: JSONValue) async throws {
    var body: JSONValue = ["status": patch]
    if let uid = attachment.metadata.uid { body["metadata"] = ["uid": .string(uid)] }
    caches.attachments.store(
      try await client.mergePatch(
        VolumeAttachment.self, name: attachment.key.name, patch: body, subresource: "status",
        fieldManager: "bm-handler"))
  }

  package func removeFinalizer(from attachment: VolumeAttachment) async throws {
    _ = try await client.removeFinalizer(Names.attachmentFinalizer, from: attachment)
  }

  package func report(_ status: BareMetalHost.DPUStatus, host: String) async throws {
    caches.hosts.store(
      try await client.apply(
        BareMetalHost.self, name: host, configuration: ["status": ["dpu": try MergePatch.json(status)]],
        fieldManager: "bm-handler", subresource: "status"))
  }
}
