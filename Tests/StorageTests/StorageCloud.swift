import Glibc
import JSON
import Kubernetes
import Logging
import Storage
import TestSupport

/// A real control plane with the cluster's own volume controllers, a pool, and `ycloud csi-controller` as a process.
final class StorageCloud: Sendable {
  let plane: TestControlPlane
  let pool: TestPool
  let client: KubernetesClient
  /// Where a controller that runs as its own user has its kubeconfig.
  let controllerKubeconfig: String
  let namespace: String

  private init(namespace: String, pool: TestPool) async throws {
    plane = try await SharedVolumePlane.instance.get()
    self.pool = pool
    self.namespace = namespace
    var logger = Logger(label: "test")
    logger.logLevel = .error
    client = try KubernetesClient(
      configuration: ClientConfiguration.load(kubeconfigPath: plane.kubeconfig), logger: logger)
    controllerKubeconfig = plane.directory.file("csi-kubeconfig")
  }

  /// Runs `body` with a pool and a namespace of its own, and removes what it left in the cluster.
  static func with(
    _ namespace: String, poolMiB: Int = 512, _ body: (StorageCloud) async throws -> Void
  ) async throws {
    let cloud = try await StorageCloud(namespace: namespace, pool: TestPool(sizeMiB: poolMiB))
    do {
      try await cloud.prepare()
      try await body(cloud)
      try await cloud.removeObjects()
    } catch {
      try? await cloud.removeObjects()
      try? await cloud.client.shutdown()
      throw error
    }
    try await cloud.client.shutdown()
  }

  private func prepare() async throws {
    // The last test's controller had another pool, and may have been killed: nobody else takes its lease early.
    try? await client.delete(Lease.self, name: "csi-controller", namespace: "ycloud-system")
    _ = try? await client.create(Namespace(metadata: ObjectMeta(name: namespace)))
    for policy in ["Delete", "Retain"] {
      _ = try? await client.create(
        StorageClass(
          metadata: ObjectMeta(name: policy.lowercased()), provisioner: StorageNames.driver, reclaimPolicy: policy,
          volumeBindingMode: "Immediate", allowVolumeExpansion: true))
    }
  }

  /// Claims and PersistentVolumes of this test, with force: the next test has another pool.
  private func removeObjects() async throws {
    try await removeSnapshots()
    for attachment in try await client.listAll(VolumeAttachment.self).items {
      try? await client.delete(VolumeAttachment.self, name: attachment.metadata.name ?? "")
    }
    for claim in try await client.listAll(PersistentVolumeClaim.self, namespace: namespace).items {
      let name = claim.metadata.name ?? ""
      try? await client.delete(PersistentVolumeClaim.self, name: name, namespace: namespace)
      if claim.metadata.hasFinalizer(SnapshotNames.claimFinalizer) {
        _ = try? await client.mergePatch(
          PersistentVolumeClaim.self, name: name, namespace: namespace, patch: ["metadata": ["finalizers": nil]])
      }
    }
    for volume in try await client.listAll(PersistentVolume.self).items {
      let name = volume.metadata.name ?? ""
      try? await client.delete(PersistentVolume.self, name: name)
      _ = try? await client.mergePatch(
        PersistentVolume.self, name: name, patch: ["metadata": ["finalizers": nil]])
    }
    try await eventually(within: .seconds(20), "no volumes are left in the cluster") {
      for volume in try await self.client.listAll(PersistentVolume.self).items {
        _ = try? await self.client.mergePatch(
          PersistentVolume.self, name: volume.metadata.name ?? "", patch: ["metadata": ["finalizers": nil]])
      }
      return try await self.client.listAll(PersistentVolume.self).items.isEmpty
    }
  }

  /// Starts the controller with the rights of deploy/rbac/csi-controller.yaml.
  func startController(_ arguments: [String] = []) async throws -> ChildProcess {
    let ycloud = try TestEnvironment.builtProduct("ycloud")
    return try ChildProcess(
      ycloud,
      [
        "csi-controller", "--pool", pool.path, "--kubeconfig", controllerKubeconfig, "--log-level", "debug",
        "--orphan-grace", "2",
      ] + arguments)
  }

  func makeClaim(
    _ name: String, size: String = "10Mi", className: String = "delete", source: String? = nil,
    annotations: [String: String] = [:], volumeMode: String = "Block", accessModes: [String] = ["ReadWriteOnce"]
  ) async throws {
    var metadata = ObjectMeta(name: name, namespace: namespace)
    metadata.annotations = annotations
    _ = try await client.create(
      PersistentVolumeClaim(
        metadata: metadata,
        spec: .init(
          accessModes: accessModes, resources: .init(requests: ["storage": Quantity(size)!]),
          storageClassName: className, volumeMode: volumeMode,
          dataSource: source.map { TypedLocalObjectReference(kind: "PersistentVolumeClaim", name: $0) })))
  }

  func claim(_ name: String) async throws -> PersistentVolumeClaim {
    try await client.get(PersistentVolumeClaim.self, name: name, namespace: namespace)
  }

  /// Waits until the claim is bound.
  ///
  /// - Returns: the name of its volume.
  @discardableResult
  func waitUntilBound(_ name: String, _ controller: ChildProcess? = nil) async throws -> String {
    try await eventualValue(
      within: .seconds(20), "\(name) is bound; the controller says: \(controller?.output.suffix(3000) ?? "")"
    ) {
      let claim = try await self.claim(name)
      return claim.status?.phase == "Bound" ? claim.spec?.volumeName : nil
    }
  }

  /// Waits until the claim carries a message that begins with `reason`, and an event says the same.
  @discardableResult
  func waitUntilRefused(_ name: String, _ reason: String) async throws -> String {
    let text = try await eventualValue(within: .seconds(20), "\(name) is refused with \(reason)") {
      try await self.claim(name).metadata.annotations?[StorageNames.provisioningMessage].flatMap {
        $0.hasPrefix("\(reason):") ? $0 : nil
      }
    }
    try await eventually(within: .seconds(10), "an event says so") {
      try await self.client.listAll(Event.self, namespace: self.namespace).items.contains {
        $0.reason == "ProvisioningFailed" && $0.message == text && $0.involvedObject.name == name
      }
    }
    return text
  }

  func deleteClaim(_ name: String) async throws {
    try await client.delete(PersistentVolumeClaim.self, name: name, namespace: namespace)
  }

  func isGone(_ persistentVolume: String) async throws -> Bool {
    do {
      _ = try await client.get(PersistentVolume.self, name: persistentVolume)
      return false
    } catch let error as KubernetesError where error.code == .notFound {
      return true
    }
  }

  func waitUntilGone(_ persistentVolume: String) async throws {
    try await eventually(within: .seconds(20), "\(persistentVolume) is gone, with its file") {
      guard try await self.isGone(persistentVolume) else { return false }
      return !self.pool.files("volumes").contains("\(persistentVolume).img")
    }
  }
}

/// One control plane for all tests of this target that need one.
private enum SharedVolumePlane {
  static let instance = SharedControlPlane { try await start() }

  private static func start() async throws -> TestControlPlane {
    let plane = try await TestControlPlane.start(controllers: [
      "persistentvolume-binder", "pv-protection", "pvc-protection",
    ])
    try await plane.kubectl("create", "namespace", "ycloud-system")
    try await plane.kubectl("apply", "-f", "\(TestEnvironment.repository)/deploy/rbac/csi-controller.yaml")
    try await plane.kubectl("apply", "-f", "\(TestEnvironment.repository)/deploy/storage-class.yaml")
    try await plane.kubectl("apply", "-f", "\(TestEnvironment.repository)/deploy/snapshot-crds")
    try await eventually(within: .seconds(20), "snapshots are served") {
      try await plane.kubectl("apply", "-f", "\(TestEnvironment.repository)/deploy/snapshot-class.yaml")
      return true
    }
    try await makeControllerAccount(plane)
    return plane
  }

  /// A certificate for the user that the RBAC manifest names, so that its rights are what is tested.
  private static func makeControllerAccount(_ plane: TestControlPlane) async throws {
    let directory = plane.directory
    try await ChildProcess.run(
      "openssl",
      [
        "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2", "-subj",
        "/CN=ycloud:csi-controller", "-keyout", directory.file("csi.key"), "-out", directory.file("csi.crt"),
        "-CA", directory.file("ca.crt"), "-CAkey", directory.file("ca.key"), "-addext",
        "basicConstraints=critical,CA:FALSE",
      ])
    try directory.write(
      "csi-kubeconfig",
      """
      apiVersion: v1
      kind: Config
      current-context: test
      clusters:
      - name: test
        cluster: {server: "\(plane.server)", certificate-authority: ca.crt}
      users:
      - name: csi
        user: {client-certificate: csi.crt, client-key: csi.key}
      contexts:
      - name: test
        context: {cluster: test, user: csi}
      """, mode: 0o600)
  }
}
