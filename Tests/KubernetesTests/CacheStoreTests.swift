import Kubernetes
import TestSupport
import Testing

@Suite struct CacheStoreTests {
  private func makeStore() -> CacheStore<ConfigMap> {
    CacheStore(indexers: ["value": { $0.data.map { Array($0.values) } ?? [] }], metadata: { $0.metadata })
  }

  private func object(_ name: String, uid: String = "u", version: Int, value: String = "") -> ConfigMap {
    ConfigMap(
      metadata: ObjectMeta(name: name, namespace: "n", uid: uid, resourceVersion: "\(version)"), data: ["v": value])
  }

  private func describe(_ changes: [ObjectChange<ConfigMap>]) -> [String] {
    changes.map { change in
      switch change {
      case .added(let object): "added \(object.metadata.name ?? "") \(object.metadata.resourceVersion ?? "")"
      case .updated(let old, let new):
        "updated \(new.metadata.name ?? "") \(old.metadata.resourceVersion ?? "")-\(new.metadata.resourceVersion ?? "")"
      case .deleted(let object): "deleted \(object.metadata.name ?? "")"
      }
    }
  }

  @Test func aListReplacesEverythingAndTellsTheDifference() {
    var store = makeStore()
    _ = store.replace(items: [object("a", version: 1), object("b", version: 2)], resourceVersion: "3")
    let changes = store.replace(
      items: [object("b", version: 5), object("c", uid: "c", version: 4)], resourceVersion: "6")
    #expect(describe(changes).sorted() == ["added c 4", "deleted a", "updated b 2-5"])
    #expect(store.resourceVersion == "6")
  }

  @Test func anOlderVersionIsIgnored() {
    var store = makeStore()
    _ = store.replace(items: [object("a", version: 10)], resourceVersion: "10")
    let changes1 = describe(store.observe(object("a", version: 9)))
    #expect(changes1 == [])
    let changes2 = describe(store.observe(object("a", version: 10)))
    #expect(changes2 == [])
    let changes3 = describe(store.observe(object("a", version: 11)))
    #expect(changes3 == ["updated a 10-11"])
  }

  @Test func ownWritesAreVisibleAtOnceAndNeverBringBackTheDeleted() {
    var store = makeStore()
    _ = store.replace(items: [object("a", version: 10)], resourceVersion: "10")
    let changes4 = describe(store.store(object("a", version: 12)))
    #expect(changes4 == ["updated a 10-12"])
    let changes5 = describe(store.observe(object("a", version: 11)))
    #expect(changes5 == [], "the watch lags behind the own write")
    let changes6 = describe(store.observeDeletion(object("a", version: 13)))
    #expect(changes6 == ["deleted a"])
    let changes7 = describe(store.store(object("a", version: 12)))
    #expect(changes7 == [], "the deletion is known already")
    let changes8 = describe(store.store(object("b", uid: "b", version: 14)))
    #expect(changes8 == ["added b 14"])
  }

  @Test func aNewIncarnationIsADeletionAndAnAddition() {
    var store = makeStore()
    _ = store.replace(items: [object("a", uid: "1", version: 10)], resourceVersion: "10")
    let changes9 = describe(store.observe(object("a", uid: "2", version: 20)))
    #expect(changes9 == ["deleted a", "added a 20"])
    let changes10 = describe(store.observeDeletion(object("a", uid: "1", version: 15)))
    #expect(changes10 == [], "that was the former one")
    #expect(store.entries.count == 1)
  }

  @Test func aServerWithAnOlderHistoryIsTheTruth() {
    var store = makeStore()
    _ = store.replace(items: [object("a", uid: "1", version: 100), object("b", version: 90)], resourceVersion: "100")
    #expect(!store.isBehind("100"))
    #expect(store.isBehind("12"))
    let changes = describe(
      store.replace(items: [object("a", uid: "2", version: 10), object("b", version: 11)], resourceVersion: "12"))
    #expect(changes.sorted() == ["added a 10", "deleted a", "updated b 90-11"])
    let later = describe(store.observe(object("b", version: 13)))
    #expect(later == ["updated b 11-13"])
    _ = store.replace(items: [], resourceVersion: "5")
    #expect(store.entries.isEmpty)
  }

  @Test func undecodableObjectsKeepTheirLastKnownState() {
    var store = makeStore()
    _ = store.replace(items: [object("a", version: 1)], resourceVersion: "1")
    let changes = store.replace(items: [], retained: [ObjectKey(namespace: "n", name: "a")], resourceVersion: "2")
    #expect(changes.isEmpty)
    #expect(store.entries.count == 1)
  }

  @Test func indexesFollowEveryChange() {
    var store = makeStore()
    _ = store.observe(object("a", version: 1, value: "x"))
    _ = store.observe(object("b", uid: "b", version: 2, value: "x"))
    #expect(store.byIndex("value", "x").map(\.metadata.name) == ["a", "b"])
    _ = store.observe(object("a", version: 3, value: "y"))
    #expect(store.byIndex("value", "x").map(\.metadata.name) == ["b"])
    #expect(store.byIndex("value", "y").map(\.metadata.name) == ["a"])
    _ = store.observeDeletion(object("b", uid: "b", version: 4))
    #expect(store.byIndex("value", "x").isEmpty)
    #expect(store.byIndex("nothing", "x").isEmpty)
  }

  /// Whatever mixture of stale reads, own writes and watch events comes in, the end state is the server's.
  @Test func endsAtTheServersStateWhateverTheOrder() {
    for seed in UInt64(0)..<300 {
      var random = SeededGenerator(seed: seed)
      var store = makeStore()
      var server: [String: ConfigMap] = [:]
      var history: [(deleted: Bool, object: ConfigMap)] = []
      var version = 0
      var delivered = 0
      for _ in 0..<200 {
        let name = "o\(random.next() % 5)"
        version += 1
        if let present = server[name], random.next() % 3 == 0 {
          var gone = present
          gone.metadata.resourceVersion = "\(version)"
          server[name] = nil
          history.append((true, gone))
        } else {
          let uid = server[name]?.metadata.uid ?? "\(name)-\(version)"
          let object = object(name, uid: uid, version: version)
          server[name] = object
          history.append((false, object))
          if random.next() % 2 == 0 { _ = store.store(object) }
        }
        switch random.next() % 5 {
        case 0:
          _ = store.replace(items: Array(server.values), resourceVersion: "\(version)")
          delivered = history.count
        case 1:
          if let old = history.randomElement(using: &random), !old.deleted { _ = store.store(old.object) }
        default:
          while delivered < history.count, random.next() % 4 != 0 {
            let (deleted, object) = history[delivered]
            _ = deleted ? store.observeDeletion(object) : store.observe(object)
            delivered += 1
          }
        }
      }
      while delivered < history.count {
        let (deleted, object) = history[delivered]
        _ = deleted ? store.observeDeletion(object) : store.observe(object)
        delivered += 1
      }
      let cached = store.entries.values.map { "\($0.object.key)@\($0.object.metadata.resourceVersion ?? "")" }
      let expected = server.values.map { "\($0.key)@\($0.metadata.resourceVersion ?? "")" }
      #expect(cached.sorted() == expected.sorted(), "seed \(seed)")
    }
  }
}
