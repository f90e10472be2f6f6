package import IaaS
package import JSON
package import Kubernetes
import Reconciler

/// What bm-controller does at the API server. Reads here are live, not from a cache; every call throws
/// `KubernetesError`.
package protocol Cluster: Sendable {
  func addFinalizer(to machine: BareMetalMachine) async throws -> BareMetalMachine
  func removeFinalizer(from machine: BareMetalMachine) async throws
  /// Patches the status; with the machine's version as the one it holds for.
  func patchStatus(of machine: BareMetalMachine, _ patch: JSONValue) async throws

  func host(_ name: String) async throws -> BareMetalHost
  func addFinalizer(to host: BareMetalHost) async throws
  func removeFinalizer(from host: BareMetalHost) async throws
  /// Patches the status. Locked means: only if nobody changed the host since it was read.
  func patchStatus(of host: BareMetalHost, _ patch: JSONValue, locked: Bool) async throws

  func machine(_ key: ObjectKey) async throws -> BareMetalMachine

  func create(_ claim: PersistentVolumeClaim) async throws
  func deleteClaim(_ key: ObjectKey, uid: String) async throws

  func attachments(onHost host: String) async throws -> [VolumeAttachment]
  func create(_ attachment: VolumeAttachment) async throws
  func deleteAttachment(_ name: String, uid: String) async throws
  /// Lets an attachment that is being deleted go without its DPU's word.
  func removeFinalizer(from attachment: VolumeAttachment) async throws

  /// Patches the status, only if nobody changed the migration since it was read.
  func patchStatus(of migration: BareMetalMachineMigration, _ patch: JSONValue) async throws
  func create(_ migration: BareMetalMachineMigration) async throws
  func deleteMigration(_ key: ObjectKey, uid: String) async throws
  /// Sets and, where the value is nil, removes annotations of an attachment.
  func annotateAttachment(_ name: String, uid: String, _ changes: [String: String?]) async throws

  func bootData(host: String) async throws -> Secret?
  func create(bootData: Secret) async throws
  /// Replaces boot data; only if nobody changed it since `present` was read.
  func replace(bootData: Secret, present: Secret) async throws
  func deleteBootData(host: String, uid: String) async throws
}

/// The API server itself. What it answers is put into the caches at once, so that the next plan sees it.
package struct KubernetesCluster: Cluster {
  let client: KubernetesClient
  let caches: ControllerCaches

  package init(client: KubernetesClient, caches: ControllerCaches) {
    self.client = client
    self.caches = caches
  }

  package func addFinalizer(to machine: BareMetalMachine) async throws -> BareMetalMachine {
    let result = try await client.addFinalizer(Names.machineFinalizer, to: machine)
    caches.machines.store(result)
    return result
  }

  package func removeFinalizer(from machine: BareMetalMachine) async throws {
    _ = try await client.removeFinalizer(Names.machineFinalizer, from: machine)
  }

  package func patchStatus(of machine: BareMetalMachine, _ patch: JSONValue) async throws {
    var body: JSONValue = ["status": patch]
    if let version = machine.metadata.resourceVersion { body["metadata"] = ["resourceVersion": .string(version)] }
    caches.machines.store(
      try await client.mergePatch(
        BareMetalMachine.self, name: machine.key.name, namespace: machine.key.namespace, patch: body,
        subresource: "status", fieldManager: ControllerNames.fieldManager))
  }

  package func host(_ name: String) async throws -> BareMetalHost {
    try await client.get(BareMetalHost.self, name: name)
  }

  package func addFinalizer(to host: BareMetalHost) async throws {
    caches.hosts.store(try await client.addFinalizer(Names.claimFinalizer, to: host))
  }

  package func removeFinalizer(from host: BareMetalHost) async throws {
    _ = try await client.removeFinalizer(Names.claimFinalizer, from: host)
  }

  package func patchStatus(of host: BareMetalHost, _ patch: JSONValue, locked: Bool) async throws {
    var body: JSONValue = ["status": patch]
    if locked, let version = host.metadata.resourceVersion {
      body["metadata"] = ["resourceVersion": .string(version)]
    }
    caches.hosts.store(
      try await client.mergePatch(
        BareMetalHost.self, name: host.key.name, patch: body, subresource: "status",
        fieldManager: ControllerNames.fieldManager))
  }

  package func machine(_ key: ObjectKey) async throws -> BareMetalMachine {
    try await client.get(BareMetalMachine.self, name: key.name, namespace: key.namespace)
  }

  package func create(_ claim: PersistentVolumeClaim) async throws {
    caches.claims.store(try await client.create(claim))
  }

  package func deleteClaim(_ key: ObjectKey, uid: String) async throws {
    try await client.delete(PersistentVolumeClaim.self, name: key.name, namespace: key.namespace, uid: uid)
  }

  package func attachments(onHost host: String) async throws -> [VolumeAttachment] {
    try await client.listAll(VolumeAttachment.self, labelSelector: "\(Names.hostLabel)=\(host)").items
  }

  package func create(_ attachment: VolumeAttachment) async throws {
    caches.attachments.store(try await client.create(attachment))
  }

  package func deleteAttachment(_ name: String, uid: String) async throws {
    try await client.delete(VolumeAttachment.self, name: name, uid: uid)
  }

  package func removeFinalizer(from attachment: VolumeAttachment) async throws {
    _ = try await client.removeFinalizer(Names.attachmentFinalizer, from: attachment)
  }

  package func patchStatus(of migration: BareMetalMachineMigration, _ patch: JSONValue) async throws {
    var body: JSONValue = ["status": patch]
    if let version = migration.metadata.resourceVersion { body["metadata"] = ["resourceVersion": .string(version)] }
    caches.migrations.store(
      try await client.mergePatch(
        BareMetalMachineMigration.self, name: migration.key.name, namespace: migration.key.namespace, patch: body,
        subresource: "status", fieldManager: ControllerNames.fieldManager))
  }

  package func create(_ migration: BareMetalMachineMigration) async throws {
    caches.migrations.store(try await client.create(migration))
  }

  package func deleteMigration(_ key: ObjectKey, uid: String) async throws {
    try await client.delete(BareMetalMachineMigration.self, name: key.name, namespace: key.namespace, uid: uid)
  }

  package func annotateAttachment(_ name: String, uid: String, _ changes: [String: String?]) async throws {
    let annotations = changes.mapValues { value in value.map { JSONValue.string($0) } ?? .null }
    caches.attachments.store(
      try await client.mergePatch(
        VolumeAttachment.self, name: name,
        patch: ["metadata": ["uid": .string(uid), "annotations": .object(annotations)]],
        fieldManager: ControllerNames.fieldManager))
  }

  package func bootData(host: String) async throws -> Secret? {
    do {
      return try await client.get(Secret.self, name: Names.bootData(host: host), namespace: Names.systemNamespace)
    } catch let error as KubernetesError where error.code == .notFound {
      return nil
    }
  }

  package func create(bootData: Secret) async throws { caches.bootData.store(try await client.create(bootData)) }

  package func replace(bootData: Secret, present: Secret) async throws {
    var secret = bootData
    secret.metadata.resourceVersion = present.metadata.resourceVersion
    secret.metadata.uid = present.metadata.uid
    caches.bootData.store(try await client.update(secret))
  }

  package func deleteBootData(host: String, uid: String) async throws {
    try await client.delete(
      Secret.self, name: Names.bootData(host: host), namespace: Names.systemNamespace, uid: uid)
  }
}

package enum ControllerNames {
  package static let fieldManager = "bm-controller"
}
