public import Logging
public import Telemetry

extension ObjectCache where T: KubernetesObject {
  /// A cache of typed objects.
  /// - Parameters:
  ///   - namespace: nil for all namespaces.
  ///   - indexers: By name, functions that give the values under which `byIndex` shall find an object.
  ///   - resync: After how long the collection is listed again although nothing asks for it; nil for never.
  public convenience init(
    client: KubernetesClient, namespace: String? = nil, labelSelector: String? = nil, fieldSelector: String? = nil,
    indexers: [String: @Sendable (T) -> [String]] = [:], resync: Duration? = nil, logger: Logger,
    registry: MetricsRegistry? = nil
  ) {
    self.init(
      source: .make(
        client: client, definition: T.definition, namespace: namespace, labelSelector: labelSelector,
        fieldSelector: fieldSelector, metadata: { $0.metadata }, finish: { $0.typed() }),
      indexers: indexers, resync: resync, logger: logger,
      metrics: registry.map { CacheMetrics(registry: $0, resource: T.definition.plural) })
  }
}

extension ObjectCache where T == DynamicObject {
  /// A cache of objects of a kind that is known only at run time.
  public convenience init(
    client: KubernetesClient, definition: ResourceDefinition, namespace: String? = nil, labelSelector: String? = nil,
    fieldSelector: String? = nil, indexers: [String: @Sendable (DynamicObject) -> [String]] = [:],
    resync: Duration? = nil, logger: Logger, registry: MetricsRegistry? = nil
  ) {
    self.init(
      source: .make(
        client: client, definition: definition, namespace: namespace, labelSelector: labelSelector,
        fieldSelector: fieldSelector, metadata: { $0.metadata },
        finish: { object in
          var object = object
          object.apiVersion = definition.apiVersion
          object.kind = definition.kind
          return object
        }),
      indexers: indexers, resync: resync, logger: logger,
      metrics: registry.map { CacheMetrics(registry: $0, resource: definition.plural) })
  }
}

extension ObjectCache.Source {
  static func make(
    client: KubernetesClient, definition: ResourceDefinition, namespace: String?, labelSelector: String?,
    fieldSelector: String?, metadata: @escaping @Sendable (T) -> ObjectMeta, finish: @escaping @Sendable (T) -> T
  ) -> Self {
    @Sendable func complete(_ item: Item<T>) -> Item<T> {
      if case .decoded(let object) = item { return .decoded(finish(object)) }
      return item
    }
    return Self(
      definition: definition,
      list: {
        var list: ObjectList<Item<T>> = try await client.listPages(
          definition, namespace: namespace, labelSelector: labelSelector, fieldSelector: fieldSelector, pageSize: 500)
        list.items = list.items.map { complete($0) }
        return list
      },
      version: {
        let page: ObjectList<Item<T>> = try await client.listPage(
          definition, namespace: namespace, labelSelector: labelSelector, fieldSelector: fieldSelector, limit: 1,
          continueToken: nil)
        return page.resourceVersion
      },
      watch: { resourceVersion, timeout in
        WatchStream(
          client: client, definition: definition,
          options: .init(
            namespace: namespace, labelSelector: labelSelector, fieldSelector: fieldSelector,
            resourceVersion: resourceVersion, allowBookmarks: true, timeout: timeout),
          finish: { (item: Item<T>) in complete(item) })
      },
      metadata: metadata)
  }
}

/// What a cache counts.
struct CacheMetrics: Sendable {
  private let resource: String
  private let objects: GaugeFamily
  private let watches: CounterFamily
  private let relists: CounterFamily
  private let broken: CounterFamily

  init(registry: MetricsRegistry, resource: String) {
    self.resource = resource
    objects = registry.gauge("kubernetes_cache_objects", help: "Objects in a cache.", labels: ["resource"])
    watches = registry.counter("kubernetes_cache_watches_total", help: "Watches started.", labels: ["resource"])
    relists = registry.counter(
      "kubernetes_cache_relists_total", help: "Times that a watch had to be replaced by a new list.",
      labels: ["resource"])
    broken = registry.counter(
      "kubernetes_cache_undecodable_total", help: "Objects that do not have the shape of their kind.",
      labels: ["resource"])
  }

  func set(count: Int) { objects.set(Double(count), resource) }
  func watchStarted() { watches.increment(resource) }
  func relisted() { relists.increment(resource) }
  func undecodable() { broken.increment(resource) }
}
