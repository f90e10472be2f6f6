import Foundation
import Kubernetes
import Testing
import Yams

/// The schemas in deploy/snapshot-crds and the Swift types say the same, and the API server can take the schemas.
@Suite struct SnapshotSchemaTests {
  private static let complete: [String: any KubernetesObject] = [
    "volumesnapshots": {
      var status = VolumeSnapshot.Status()
      status.boundVolumeSnapshotContentName = "c"
      status.creationTime = .now()
      status.readyToUse = true
      status.restoreSize = Quantity(bytes: 1)
      status.error = SnapshotError(message: "m", time: .now())
      status.volumeGroupSnapshotName = "g"
      return VolumeSnapshot(
        metadata: ObjectMeta(name: "n"),
        spec: .init(
          source: .init(persistentVolumeClaimName: "p", volumeSnapshotContentName: "c"), volumeSnapshotClassName: "k"),
        status: status)
    }(),
    "volumesnapshotcontents": {
      var status = VolumeSnapshotContent.Status()
      status.snapshotHandle = "h"
      status.creationTime = 1
      status.restoreSize = 1
      status.readyToUse = true
      status.error = SnapshotError(message: "m", time: .now())
      status.volumeGroupSnapshotHandle = "g"
      return VolumeSnapshotContent(
        metadata: ObjectMeta(name: "n"),
        spec: .init(
          deletionPolicy: "Delete", driver: "d", source: .init(volumeHandle: "v", snapshotHandle: "s"),
          sourceVolumeMode: "Block", volumeSnapshotClassName: "k",
          volumeSnapshotRef: ObjectReference(
            apiVersion: "a", kind: "k", namespace: "n", name: "n", uid: "u", resourceVersion: "1", fieldPath: "f")),
        status: status)
    }(),
    "volumesnapshotclasses": VolumeSnapshotClass(
      metadata: ObjectMeta(name: "n"), driver: "d", deletionPolicy: "Delete", parameters: ["p": "v"]),
  ]

  private static func definition(_ plural: String) throws -> [String: Any] {
    let root = URL(filePath: #filePath).deletingLastPathComponent().deletingLastPathComponent()
      .deletingLastPathComponent()
    let text = try String(contentsOf: root.appending(path: "deploy/snapshot-crds/\(plural).yaml"), encoding: .utf8)
    return try #require(try Yams.load(yaml: text) as? [String: Any])
  }

  private static func fields(_ schema: [String: Any], _ path: String = "") -> Set<String> {
    var result: Set<String> = []
    for (name, value) in schema["properties"] as? [String: [String: Any]] ?? [:] {
      result.insert(path + name)
      result.formUnion(fields(value, "\(path)\(name)."))
    }
    return result
  }

  /// The members of a value; those of `parameters` have names of the user's own.
  private static func members(_ value: Any, _ path: String = "") -> Set<String> {
    var result: Set<String> = []
    for (name, member) in value as? [String: Any] ?? [:] {
      result.insert(path + name)
      if name != "parameters" { result.formUnion(members(member, "\(path)\(name).")) }
    }
    return result
  }

  @Test(arguments: complete.keys.sorted()) func sameFieldsAndNames(_ plural: String) throws {
    let definition = try Self.definition(plural)
    let spec = try #require(definition["spec"] as? [String: Any])
    let version = try #require((spec["versions"] as? [[String: Any]])?.first)
    let schema = try #require((version["schema"] as? [String: Any])?["openAPIV3Schema"] as? [String: Any])
    let object = try #require(Self.complete[plural])
    let encoded = try JSONSerialization.jsonObject(with: JSONEncoder().encode(object))
    func own(_ paths: Set<String>) -> Set<String> { paths.filter { !$0.hasPrefix("metadata.") } }
    #expect(own(Self.fields(schema)) == own(Self.members(encoded)))

    let names = try #require(spec["names"] as? [String: Any])
    let type = Swift.type(of: object).definition
    #expect(spec["group"] as? String == type.group && version["name"] as? String == type.version)
    #expect(names["kind"] as? String == type.kind && names["plural"] as? String == type.plural)
    #expect((spec["scope"] as? String == "Namespaced") == type.namespaced)
    // The API server takes no definition in a group of Kubernetes without it.
    let metadata = try #require(definition["metadata"] as? [String: Any])
    let annotations = metadata["annotations"] as? [String: String]
    #expect(annotations?["api-approved.kubernetes.io"]?.hasPrefix("https://") == true)
  }
}
