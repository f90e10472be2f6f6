import Kubernetes
import Logging
import Storage
import TestSupport
import Testing

/// A cluster that gets `snapshot.storage.k8s.io/v1` when csi-controller runs already.
@Suite(.serialized) struct LateDefinitionsTests {
  @Test func snapshotsBeginWhenTheClusterHasThem() async throws {
    let plane = try await TestControlPlane.start(controllers: [
      "persistentvolume-binder", "pv-protection", "pvc-protection",
    ])
    let pool = try await TestPool()
    let deploy = "\(TestEnvironment.repository)/deploy"
    try await plane.kubectl("apply", "-f", "\(deploy)/storage-class.yaml")
    let controller = try ChildProcess(
      try TestEnvironment.builtProduct("ycloud"),
      ["csi-controller", "--pool", pool.path, "--kubeconfig", plane.kubeconfig, "--no-leader-election"])
    try await plane.apply(
      manifest: """
        apiVersion: v1
        kind: PersistentVolumeClaim
        metadata: {name: disk, namespace: default}
        spec:
          storageClassName: ycloud
          volumeMode: Block
          accessModes: [ReadWriteOnce]
          resources: {requests: {storage: 10Mi}}
        """)
    try await eventually(within: .seconds(60), "volumes do not wait for it; \(controller.output.suffix(2000))") {
      try await plane.kubectl("get", "pvc", "disk", "-o", "jsonpath={.status.phase}") == "Bound"
    }
    #expect(controller.output.contains("no snapshots yet"))

    try await plane.kubectl("apply", "-f", "\(deploy)/snapshot-crds")
    try await eventually(within: .seconds(30), "snapshots are served") {
      try await plane.kubectl("apply", "-f", "\(deploy)/snapshot-class.yaml")
      return true
    }
    try await plane.apply(
      manifest: """
        apiVersion: snapshot.storage.k8s.io/v1
        kind: VolumeSnapshot
        metadata: {name: late, namespace: default}
        spec: {source: {persistentVolumeClaimName: disk}}
        """)
    try await eventually(within: .seconds(60), "it is taken; \(controller.output.suffix(2000))") {
      try await plane.kubectl("get", "vs", "late", "-o", "jsonpath={.status.readyToUse}") == "true"
    }
    #expect(pool.files("snapshots").count == 1)
    controller.kill()
  }
}
