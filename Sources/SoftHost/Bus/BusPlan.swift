/// What has to be done so that what is plugged becomes what is on the bus. Pure.
package struct BusPlan: Sendable, Hashable {
  /// A function as it is plugged into the running machine.
  package struct Plugged: Sendable, Hashable {
    package let id: String
    /// The index of its root port.
    package let port: Int
    /// Only of network cards.
    package let mac: String?

    package init(id: String, port: Int, mac: String? = nil) {
      self.id = id
      self.port = port
      self.mac = mac
    }
  }

  package enum Step: Sendable, Hashable {
    case plug(BusFunction, port: Int)
    case unplug(id: String)
  }

  package var steps: [Step] = []
  /// Functions for which no port is free.
  package var withoutPort: [String] = []

  /// Unplugs come first, because they free ports.
  ///
  /// - Parameter kept: functions that stay plugged although they are not on the bus, because they may come back.
  package init(bus: [BusFunction], plugged: [Plugged], kept: Set<String> = [], ports: Int) {
    let wanted = Dictionary(bus.map { ($0.id, $0) }, uniquingKeysWith: { first, _ in first })
    var used = Set<Int>()
    var present = kept
    for device in plugged.sorted(by: { $0.id < $1.id }) {
      used.insert(device.port)
      if let function = wanted[device.id] {
        present.insert(device.id)
        // The same name with another address is another card.
        if case .nic(let mac, _) = function.kind, let present = device.mac, present != mac {
          steps.append(.unplug(id: device.id))
        }
      } else if !kept.contains(device.id) {
        steps.append(.unplug(id: device.id))
      }
    }
    var free = (0..<ports).filter { !used.contains($0) }[...]
    for function in bus.sorted(by: { ($0.order, $0.id) < ($1.order, $1.id) }) where !present.contains(function.id) {
      if let port = free.popFirst() {
        steps.append(.plug(function, port: port))
      } else {
        withoutPort.append(function.id)
      }
    }
  }
}
