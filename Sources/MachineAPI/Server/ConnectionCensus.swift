import Synchronization

/// How many are connected: of those who have not shown who they are there is room for some only, so that they do not keep
/// out the others.
package final class ConnectionCensus: Sendable {
  package struct Place: Sendable, Hashable {
    package fileprivate(set) var isStranger: Bool
  }

  private struct Counts {
    var strangers = 0
    var known = 0
  }

  private let strangersMax: Int
  private let connectionsMax: Int
  private let counts = Mutex(Counts())

  package init(strangersMax: Int, connectionsMax: Int) {
    self.strangersMax = strangersMax
    self.connectionsMax = connectionsMax
  }

  /// A place for a new connection; nil where there is none.
  package func enter() -> Place? {
    counts.withLock { counts in
      guard counts.strangers < strangersMax, counts.strangers + counts.known < connectionsMax else { return nil }
      counts.strangers += 1
      return Place(isStranger: true)
    }
  }

  package func recognize(_ place: Place) -> Place {
    guard place.isStranger else { return place }
    counts.withLock { counts in
      counts.strangers -= 1
      counts.known += 1
    }
    return Place(isStranger: false)
  }

  package func leave(_ place: Place) {
    counts.withLock { counts in
      if place.isStranger { counts.strangers -= 1 } else { counts.known -= 1 }
    }
  }
}
