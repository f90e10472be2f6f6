public import Kubernetes

extension ObjectCache where T: KubernetesObject {
  /// Adds the key of every object that appears, changes or disappears to `queue`.
  /// - Parameter isRelevant: Whether a change matters; all do by default.
  public func feed(_ queue: WorkQueue, isRelevant: (@Sendable (_ old: T, _ new: T) -> Bool)? = nil) {
    feed(queue, isRelevant: isRelevant) { [$0.key] }
  }

  /// Adds the keys that `map` gives for every object that appears, changes or disappears to `queue`: the owner of a
  /// dependent, or everybody who refers to it. For a change, both the old and the new state are mapped.
  public func feed(
    _ queue: WorkQueue, isRelevant: (@Sendable (_ old: T, _ new: T) -> Bool)? = nil,
    map: @escaping @Sendable (T) -> [ObjectKey]
  ) {
    queue.addSource { [weak self] in self?.all().flatMap(map) ?? [] }
    onChange { change in
      switch change {
      case .added(let object), .deleted(let object):
        for key in map(object) { queue.add(key) }
      case .updated(let old, let new):
        if let isRelevant, !isRelevant(old, new) { return }
        for key in Set(map(old)).union(map(new)) { queue.add(key) }
      }
    }
  }
}
