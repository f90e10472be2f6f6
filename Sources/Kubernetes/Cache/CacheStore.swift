/// A change of a cache.
public enum ObjectChange<T: Sendable>: Sendable {
  case added(T)
  case updated(old: T, new: T)
  /// The object as it was last known.
  case deleted(T)
}

/// The content of a cache and its indexes. Pure: events in, changes out.
///
/// An object never goes back to an older version of itself, in whatever order lists, watch events and results of own
/// writes come in. The one exception is a server whose own history went back, because it was restored from a backup or
/// replaced: then its list is the truth, whatever was seen before.
package struct CacheStore<T: Sendable>: Sendable {
  package struct Entry: Sendable {
    package let object: T
    let uid: String?
    let version: UInt64?
    let resourceVersion: String?
  }

  package typealias Indexer = @Sendable (T) -> [String]

  private let metadata: @Sendable (T) -> ObjectMeta
  private let indexers: [String: Indexer]
  package private(set) var entries: [ObjectKey: Entry] = [:]
  private var indexes: [String: [String: Set<ObjectKey>]] = [:]
  /// Up to where the collection was seen.
  package private(set) var resourceVersion = ""

  package init(indexers: [String: Indexer], metadata: @escaping @Sendable (T) -> ObjectMeta) {
    self.indexers = indexers
    self.metadata = metadata
  }

  package func byIndex(_ name: String, _ value: String) -> [T] {
    guard let keys = indexes[name]?[value] else { return [] }
    return keys.sorted().compactMap { entries[$0]?.object }
  }

  package func keys(_ name: String, _ value: String) -> Set<ObjectKey> { indexes[name]?[value] ?? [] }

  /// Takes a whole list over.
  /// - Parameter retained: Objects that are in the list but could not be decoded: what is known of them stays.
  package mutating func replace(
    items: [T], retained: Set<ObjectKey> = [], resourceVersion: String
  ) -> [ObjectChange<T>] {
    var changes: [ObjectChange<T>] = []
    if isBehind(resourceVersion) {
      // Nothing that was seen of the former history compares with this one.
      entries = entries.mapValues { Entry(object: $0.object, uid: $0.uid, version: nil, resourceVersion: nil) }
    }
    var present = retained
    for item in items {
      let meta = metadata(item)
      let key = ObjectKey(namespace: meta.namespace, name: meta.name ?? "")
      present.insert(key)
      changes += put(item, meta, key)
    }
    let listed = UInt64(resourceVersion)
    for (key, entry) in entries where !present.contains(key) {
      // An own write that is newer than the list is missing for that reason only; the watch will tell its end.
      if let version = entry.version, let listed, version > listed { continue }
      if let change = remove(key) { changes.append(change) }
    }
    self.resourceVersion = resourceVersion
    return changes
  }

  /// Takes an added or modified object of the watch over.
  package mutating func observe(_ object: T) -> [ObjectChange<T>] {
    let meta = metadata(object)
    advance(to: meta.resourceVersion)
    return put(object, meta, ObjectKey(namespace: meta.namespace, name: meta.name ?? ""))
  }

  /// Takes a deletion of the watch over.
  package mutating func observeDeletion(_ object: T) -> [ObjectChange<T>] {
    let meta = metadata(object)
    advance(to: meta.resourceVersion)
    return forget(ObjectKey(namespace: meta.namespace, name: meta.name ?? ""), meta, last: object)
  }

  /// The watch reported the deletion of an object that cannot be decoded.
  package mutating func observeUndecodableDeletion(_ meta: ObjectMeta) -> [ObjectChange<T>] {
    advance(to: meta.resourceVersion)
    return forget(ObjectKey(namespace: meta.namespace, name: meta.name ?? ""), meta, last: nil)
  }

  /// Whether the server shows an older version of the collection than it did before.
  package func isBehind(_ version: String) -> Bool {
    guard let shown = UInt64(version), let seen = UInt64(resourceVersion) else { return false }
    return shown < seen
  }

  /// Everything up to this version was seen.
  package mutating func advance(to version: String?) {
    if let version, !version.isEmpty { resourceVersion = version }
  }

  /// Takes the result of an own write over before the watch reports it.
  ///
  /// Only where it is newer than all that the watch has shown: otherwise the object may have been deleted since.
  package mutating func store(_ object: T) -> [ObjectChange<T>] {
    let meta = metadata(object)
    let key = ObjectKey(namespace: meta.namespace, name: meta.name ?? "")
    guard let version = meta.resourceVersion.flatMap({ UInt64($0) }) else { return [] }
    if let entry = entries[key], entry.uid == meta.uid { return put(object, meta, key) }
    guard let seen = UInt64(resourceVersion), version > seen else { return [] }
    return put(object, meta, key)
  }

  private mutating func put(_ object: T, _ meta: ObjectMeta, _ key: ObjectKey) -> [ObjectChange<T>] {
    let entry = Entry(
      object: object, uid: meta.uid, version: meta.resourceVersion.flatMap { UInt64($0) },
      resourceVersion: meta.resourceVersion)
    guard let old = entries[key] else {
      entries[key] = entry
      index(object, key)
      return [.added(object)]
    }
    if old.uid == entry.uid {
      // Versions are numbers in every API server there is; where they are not, only equality counts.
      if old.resourceVersion == entry.resourceVersion { return [] }
      if let before = old.version, let after = entry.version, after <= before { return [] }
      unindex(old.object, key)
      entries[key] = entry
      index(object, key)
      return [.updated(old: old.object, new: object)]
    }
    if let before = old.version, let after = entry.version, after <= before { return [] }
    // Another object of the same name: its predecessor was deleted while nobody looked.
    unindex(old.object, key)
    entries[key] = entry
    index(object, key)
    return [.deleted(old.object), .added(object)]
  }

  private mutating func forget(_ key: ObjectKey, _ meta: ObjectMeta, last: T?) -> [ObjectChange<T>] {
    guard let entry = entries[key] else { return [] }
    // The deletion of a predecessor says nothing about its successor.
    if let uid = meta.uid, let known = entry.uid, uid != known { return [] }
    guard let change = remove(key) else { return [] }
    if let last { return [.deleted(last)] }
    return [change]
  }

  private mutating func remove(_ key: ObjectKey) -> ObjectChange<T>? {
    guard let entry = entries.removeValue(forKey: key) else { return nil }
    unindex(entry.object, key)
    return .deleted(entry.object)
  }

  private mutating func index(_ object: T, _ key: ObjectKey) {
    for (name, indexer) in indexers {
      for value in indexer(object) { indexes[name, default: [:]][value, default: []].insert(key) }
    }
  }

  private mutating func unindex(_ object: T, _ key: ObjectKey) {
    for (name, indexer) in indexers {
      for value in indexer(object) {
        indexes[name]?[value]?.remove(key)
        if indexes[name]?[value]?.isEmpty ?? false { indexes[name]?[value] = nil }
      }
    }
  }
}
