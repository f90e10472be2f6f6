import JSON
public import Kubernetes

/// Finalizers: names that keep a deleted object until its cleanup is done.
extension KubernetesClient {
  /// Adds a finalizer where it is missing; returns the object as it is then.
  ///
  /// Nothing is written to an object that is being deleted: the API server would refuse.
  /// - Throws: `KubernetesError`; with the code `conflict` where the object changed meanwhile.
  public func addFinalizer<T: KubernetesObject>(_ finalizer: String, to object: T) async throws -> T {
    guard !object.metadata.isBeingDeleted, !object.metadata.hasFinalizer(finalizer) else { return object }
    return try await patchFinalizers(of: object, (object.metadata.finalizers ?? []) + [finalizer])
  }

  /// Removes a finalizer where it is set; returns the object as it was before it may have gone, or as it is then.
  ///
  /// An object that is gone already is no error.
  public func removeFinalizer<T: KubernetesObject>(_ finalizer: String, from object: T) async throws -> T {
    guard object.metadata.hasFinalizer(finalizer) else { return object }
    do {
      return try await patchFinalizers(of: object, (object.metadata.finalizers ?? []).filter { $0 != finalizer })
    } catch let error as KubernetesError where error.code == .notFound {
      return object
    }
  }

  /// A merge patch replaces the whole list, so it holds only for the version that the list was read from.
  private func patchFinalizers<T: KubernetesObject>(of object: T, _ finalizers: [String]) async throws -> T {
    var metadata: JSONValue = ["finalizers": .array(finalizers.map { .string($0) })]
    if let version = object.metadata.resourceVersion { metadata["resourceVersion"] = .string(version) }
    if let uid = object.metadata.uid { metadata["uid"] = .string(uid) }
    return try await mergePatch(
      T.self, name: object.metadata.name ?? "", namespace: object.metadata.namespace, patch: ["metadata": metadata])
  }
}
