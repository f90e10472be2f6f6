import Synchronization

/// How many are connected: of those who have not shown who they are there is room for some only, and of those from one
/// address too, so that they do not keep out the others. The front proxy, which speaks for everybody, is none of these.
package final class ConnectionCensus: Sendable {
  package struct Place: Sendable, Hashable {
    package fileprivate(set) var isStranger: Bool
    /// Whose room it takes; nil for nobody's.
    fileprivate var address: String?
  }

  private struct Counts {
    var strangers = 0
    var known = 0
    var addresses: [String: (strangers: Int, all: Int)] = [:]

    mutating func change(_ address: String?, strangers: Int, all: Int) {
      guard let address else { return }
      var count = addresses[address] ?? (0, 0)
      count.strangers += strangers
      count.all += all
      addresses[address] = count.all > 0 ? count : nil
    }
  }

  private let strangersMax: Int
  private let connectionsMax: Int
  private let counts = Mutex(Counts())

  package init(strangersMax: Int, connectionsMax: Int) {
    self.strangersMax = strangersMax
    self.connectionsMax = connectionsMax
  }

  /// A place for a new connection; nil where there is none.
  package func enter(from address: String?) -> Place? {
    counts.withLock { counts in
      guard counts.strangers < strangersMax, counts.strangers + counts.known < connectionsMax else { return nil }
      let present = address.flatMap { counts.addresses[$0] } ?? (0, 0)
      // Half of the strangers' room, and a quarter of all.
      guard present.strangers < max(1, strangersMax / 2), present.all < max(1, connectionsMax / 4) else { return nil }
      counts.strangers += 1
      counts.change(address, strangers: 1, all: 1)
      return Place(isStranger: true, address: address)
    }
  }

  /// - Parameter isProxy: whether it is the front proxy's.
  package func recognize(_ place: Place, isProxy: Bool) -> Place {
    guard place.isStranger || (isProxy && place.address != nil) else { return place }
    return counts.withLock { counts in
      var known = place
      known.isStranger = false
      if place.isStranger {
        counts.strangers -= 1
        counts.known += 1
        counts.change(place.address, strangers: -1, all: 0)
      }
      if isProxy {
        counts.change(place.address, strangers: 0, all: -1)
        known.address = nil
      }
      return known
    }
  }

  package func leave(_ place: Place) {
    counts.withLock { counts in
      if place.isStranger { counts.strangers -= 1 } else { counts.known -= 1 }
      counts.change(place.address, strangers: place.isStranger ? -1 : 0, all: -1)
    }
  }
}
