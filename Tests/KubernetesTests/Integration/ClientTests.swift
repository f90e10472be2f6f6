import JSON
import Kubernetes
import Logging
import TestSupport
import Testing

#if canImport(FoundationEssentials)
  import FoundationEssentials
#else
  import Foundation
#endif

@Suite(.timeLimit(.minutes(3))) struct ClientTests {
  @Test func objectsAreCreatedReadReplacedAndDeleted() async throws {
    let cluster = try await Cluster.shared()
    let client = cluster.client
    let created = try await client.create(cluster.configMap("a", ["k": "1"]))
    #expect(created.metadata.uid != nil)
    #expect(created.kind == "ConfigMap")

    var changed = try await client.get(ConfigMap.self, name: "a", namespace: cluster.namespace)
    changed.data = ["k": "2"]
    let updated = try await client.update(changed)
    #expect(updated.data == ["k": "2"])
    #expect(updated.metadata.resourceVersion != created.metadata.resourceVersion)

    // The version that was read first is out of date by now.
    let conflict = try await failure { _ = try await client.update(created) }
    #expect(conflict.code == .conflict)
    #expect(conflict.status?.reason == "Conflict")

    let again = try await failure { _ = try await client.create(cluster.configMap("a")) }
    #expect(again.code == .alreadyExists)

    try await client.delete(ConfigMap.self, name: "a", namespace: cluster.namespace)
    let gone = try await failure {
      _ = try await client.get(ConfigMap.self, name: "a", namespace: cluster.namespace)
    }
    #expect(gone.code == .notFound)
    #expect(gone.operation == "get configmaps \(cluster.namespace)/a")
    #expect(gone.status?.details?.name == "a")
  }

  @Test func secretsCarryBytes() async throws {
    let cluster = try await Cluster.shared()
    let bytes = Data([0, 255, 10, 13])
    _ = try await cluster.client.create(
      Secret(
        metadata: ObjectMeta(name: "s", namespace: cluster.namespace), type: "Opaque", data: ["raw": bytes],
        stringData: ["text": "häy"]))
    let read = try await cluster.client.get(Secret.self, name: "s", namespace: cluster.namespace)
    #expect(read.data?["raw"] == bytes)
    #expect(read.string("text") == "häy")
  }

  @Test func deletesHaveTheirPreconditions() async throws {
    let cluster = try await Cluster.shared()
    let client = cluster.client
    let object = try await client.create(cluster.configMap("a"))
    let wrong = try await failure {
      try await client.delete(
        ConfigMap.self, name: "a", namespace: cluster.namespace, uid: "00000000-0000-0000-0000-000000000000")
    }
    #expect(wrong.code == .conflict)
    let stale = try await failure {
      try await client.delete(ConfigMap.self, name: "a", namespace: cluster.namespace, resourceVersion: "1")
    }
    #expect(stale.code == .conflict)
    try await client.delete(
      ConfigMap.self, name: "a", namespace: cluster.namespace, uid: object.metadata.uid,
      resourceVersion: object.metadata.resourceVersion, propagation: .background, gracePeriodSeconds: 0)
  }

  @Test func mergePatchWithAVersionIsAnOptimisticLock() async throws {
    let cluster = try await Cluster.shared()
    let client = cluster.client
    let object = try await client.create(cluster.configMap("a", ["keep": "1", "drop": "2"]))
    let patched = try await client.mergePatch(
      ConfigMap.self, name: "a", namespace: cluster.namespace,
      patch: [
        "metadata": ["resourceVersion": .string(object.metadata.resourceVersion ?? "")],
        "data": ["drop": nil, "new": "3"],
      ], fieldManager: "tester")
    #expect(patched.data == ["keep": "1", "new": "3"])
    let stale = try await failure {
      _ = try await client.mergePatch(
        ConfigMap.self, name: "a", namespace: cluster.namespace,
        patch: [
          "metadata": ["resourceVersion": .string(object.metadata.resourceVersion ?? "")], "data": ["x": "y"],
        ])
    }
    #expect(stale.code == .conflict)
    let operations: [JSONValue] = [["op": "replace", "path": "/data/keep", "value": "9"]]
    let replaced = try await client.jsonPatch(
      ConfigMap.self, name: "a", namespace: cluster.namespace, operations: operations)
    #expect(replaced.data?["keep"] == "9")
  }

  @Test func serverSideApplyOwnsItsFields() async throws {
    let cluster = try await Cluster.shared()
    let client = cluster.client
    func apply(_ data: JSONValue, by manager: String, force: Bool) async throws -> ConfigMap {
      try await client.apply(
        ConfigMap.self, name: "a", namespace: cluster.namespace, configuration: ["data": data], fieldManager: manager,
        force: force)
    }
    let first = try await apply(["mine": "1", "shared": "1"], by: "one", force: true)
    #expect(first.data == ["mine": "1", "shared": "1"])
    let second = try await apply(["theirs": "2"], by: "two", force: true)
    #expect(second.data == ["mine": "1", "shared": "1", "theirs": "2"])

    let conflict = try await failure { _ = try await apply(["shared": "2"], by: "two", force: false) }
    #expect(conflict.code == .conflict)
    #expect(conflict.causes.first?.field == ".data.shared")

    let forced = try await apply(["theirs": "2", "shared": "2"], by: "two", force: true)
    #expect(forced.data?["shared"] == "2")
    // What a manager applied before and leaves out now goes; what another one owns stays.
    let removed = try await apply([:], by: "one", force: true)
    #expect(removed.data == ["shared": "2", "theirs": "2"])
  }

  @Test func statusIsWrittenApartFromTheRest() async throws {
    let cluster = try await Cluster.shared()
    let client = cluster.client
    let claim = PersistentVolumeClaim(
      metadata: ObjectMeta(name: "c", namespace: cluster.namespace),
      spec: .init(
        accessModes: ["ReadWriteOnce"], resources: .init(requests: ["storage": Quantity(bytes: 1 << 30)]),
        storageClassName: "none"))
    var created = try await client.create(claim)
    #expect(created.spec?.resources?.requests?["storage"] == Quantity("1Gi"))
    created.status = .init(phase: "Lost")
    created.spec?.storageClassName = "not-written"
    let updated = try await client.updateStatus(created)
    #expect(updated.status?.phase == "Lost")
    #expect(updated.spec?.storageClassName == "none")
    let patched = try await client.mergePatch(
      PersistentVolumeClaim.self, name: "c", namespace: cluster.namespace, patch: ["status": ["phase": "Pending"]],
      subresource: "status")
    #expect(patched.status?.phase == "Pending")
  }

  @Test func listsComeInPages() async throws {
    let cluster = try await Cluster.shared()
    let client = cluster.client
    for index in 0..<23 {
      _ = try await client.create(
        cluster.configMap("m\(index)", labels: ["parity": index % 2 == 0 ? "even" : "odd"]))
    }
    let page = try await client.list(
      ConfigMap.self, namespace: cluster.namespace, labelSelector: "parity=even", limit: 5)
    #expect(page.items.count == 5)
    #expect(page.continueToken != nil)
    let all = try await client.listAll(
      ConfigMap.self, namespace: cluster.namespace, labelSelector: "parity in (even, odd)", pageSize: 5)
    #expect(Set(all.items.map(\.key)).count == 23)
    #expect(all.items.allSatisfy { $0.kind == "ConfigMap" })
    #expect(!all.resourceVersion.isEmpty)
    let named = try await client.list(
      ConfigMap.self, namespace: cluster.namespace, fieldSelector: "metadata.name=m7")
    #expect(named.items.map(\.metadata.name) == ["m7"])
  }

  @Test func untypedObjectsOfAnyKind() async throws {
    let cluster = try await Cluster.shared()
    let definition = ResourceDefinition(
      group: "", version: "v1", kind: "ServiceAccount", plural: "serviceaccounts", namespaced: true)
    let created = try await cluster.client.create(
      definition,
      DynamicObject(
        content: [
          "apiVersion": "v1", "kind": "ServiceAccount",
          "metadata": ["name": "robot", "namespace": .string(cluster.namespace)],
        ]))
    #expect(created.uid != nil)
    let patched = try await cluster.client.mergePatch(
      definition, name: "robot", namespace: cluster.namespace, patch: ["metadata": ["labels": ["a": "b"]]])
    #expect(patched.metadata.labels == ["a": "b"])
    let list = try await cluster.client.listAll(definition, namespace: cluster.namespace, labelSelector: "a=b")
    #expect(list.items.map(\.name) == ["robot"])
    try await cluster.client.delete(definition, name: "robot", namespace: cluster.namespace, uid: created.uid)
    let version = try await cluster.client.version()
    #expect(version["gitVersion"]?.stringValue?.hasPrefix("v") == true)
  }

  @Test func whatTheServerFindsWrongIsNamed() async throws {
    let cluster = try await Cluster.shared()
    let invalid = try await failure {
      _ = try await cluster.client.create(cluster.configMap("Not_A_Name"))
    }
    #expect(invalid.code == .invalid)
    #expect(invalid.causes.contains { $0.field == "metadata.name" })
    #expect(invalid.httpStatus == 422)
    let unknown = try await failure {
      _ = try await cluster.client.list(
        ResourceDefinition(group: "no.such", version: "v1", kind: "Thing", plural: "things", namespaced: true))
    }
    #expect(unknown.code == .notFound)
  }

  @Test func aMissingNameNeverReachesTheCollection() async throws {
    let cluster = try await Cluster.shared()
    let client = cluster.client
    _ = try await client.create(cluster.configMap("a"))
    for name in ["", ".", ".."] {
      let error = try await failure {
        try await client.delete(ConfigMap.self, name: name, namespace: cluster.namespace)
      }
      #expect(error.code == .badRequest)
    }
    let error = try await failure { _ = try await client.get(ConfigMap.self, name: "a") }
    #expect(error.message.contains("namespace"))
    #expect(try await client.get(ConfigMap.self, name: "a", namespace: cluster.namespace).metadata.name == "a")
    let odd = try await failure {
      _ = try await client.get(ConfigMap.self, name: "a/../../secrets?x=y#", namespace: cluster.namespace)
    }
    #expect(odd.code == .notFound || odd.code == .badRequest)
  }

  @Test func requestsAreHeldToTheRate() async throws {
    let cluster = try await Cluster.shared()
    let client = try Cluster.makeClient(cluster.plane) {
      $0.queriesPerSecond = 20
      $0.burst = 2
    }
    let start = ContinuousClock.now
    try await withThrowingTaskGroup(of: Void.self) { group in
      for _ in 0..<10 { group.addTask { _ = try await client.version() } }
      try await group.waitForAll()
    }
    #expect(ContinuousClock.now - start >= .milliseconds(390), "8 requests beyond the burst at 20 a second")
    try await client.shutdown()
  }
}
