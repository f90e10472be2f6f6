import JSON
import Kubernetes

/// Applies manifests of any kind that the API server knows.
struct ObjectApplier: Sendable {
  let client: KubernetesClient
  let fieldManager: String

  /// Applies objects one after the other: later ones may need earlier ones.
  func apply(_ objects: [JSONValue]) async throws {
    var plurals: [String: [String: Kind]] = [:]
    for object in objects {
      let (apiVersion, kind, name) = try Self.identity(object)
      if plurals[apiVersion] == nil { plurals[apiVersion] = try await discover(apiVersion) }
      guard let known = plurals[apiVersion]?[kind] else {
        throw LocalCloudError(
          .controlPlane, operation: "apply \(kind) \(name)", "the API server knows no \(kind) in \(apiVersion)")
      }
      let parts = apiVersion.split(separator: "/")
      let definition = ResourceDefinition(
        group: parts.count > 1 ? String(parts[0]) : "", version: String(parts.last ?? ""), kind: kind,
        plural: known.plural, namespaced: known.namespaced)
      let namespace = object["metadata"]?["namespace"]?.stringValue
      _ = try await client.apply(
        definition, name: name, namespace: known.namespaced ? namespace ?? "default" : nil, configuration: object,
        fieldManager: fieldManager)
    }
  }

  /// Waits until the API server serves what a CustomResourceDefinition defines.
  func waitUntilServed(_ definition: JSONValue) async throws {
    let (_, _, name) = try Self.identity(definition)
    let path = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/\(name)"
    let deadline = ContinuousClock.now + .seconds(20)
    while ContinuousClock.now < deadline {
      let conditions = try await client.request(method: "GET", path: path)["status"]?["conditions"]?.arrayValue ?? []
      func isTrue(_ type: String) -> Bool {
        conditions.contains { $0["type"]?.stringValue == type && $0["status"]?.stringValue == "True" }
      }
      // Established comes a moment before the handler is there, so ask that too.
      if isTrue("Established"), let group = definition["spec"]?["group"]?.stringValue,
        let version = definition["spec"]?["versions"]?[0]?["name"]?.stringValue,
        let plural = definition["spec"]?["names"]?["plural"]?.stringValue,
        (try? await client.request(method: "GET", path: "/apis/\(group)/\(version)/\(plural)")) != nil
      {
        return
      }
      if let refused = conditions.first(where: {
        $0["type"]?.stringValue == "NamesAccepted" && $0["status"]?.stringValue == "False"
      }) {
        throw LocalCloudError(
          .controlPlane, operation: "define \(name)", refused["message"]?.stringValue ?? "its names are not accepted")
      }
      try await Task.sleep(for: .milliseconds(20))
    }
    throw LocalCloudError(.timedOut, operation: "define \(name)", "the API server does not serve it after 20 s")
  }

  private struct Kind {
    var plural: String
    var namespaced: Bool
  }

  /// The kinds of one group and version, as the API server lists them.
  private func discover(_ apiVersion: String) async throws -> [String: Kind] {
    let path = apiVersion.contains("/") ? "/apis/\(apiVersion)" : "/api/\(apiVersion)"
    var kinds: [String: Kind] = [:]
    for resource in try await client.request(method: "GET", path: path)["resources"]?.arrayValue ?? [] {
      guard let kind = resource["kind"]?.stringValue, let plural = resource["name"]?.stringValue,
        !plural.contains("/")
      else { continue }
      kinds[kind] = Kind(plural: plural, namespaced: resource["namespaced"]?.boolValue ?? false)
    }
    return kinds
  }

  private static func identity(_ object: JSONValue) throws -> (apiVersion: String, kind: String, name: String) {
    guard let apiVersion = object["apiVersion"]?.stringValue, let kind = object["kind"]?.stringValue,
      let name = object["metadata"]?["name"]?.stringValue
    else {
      throw LocalCloudError(
        .controlPlane, operation: "apply a manifest", "an object without apiVersion, kind or metadata.name")
    }
    return (apiVersion, kind, name)
  }
}
