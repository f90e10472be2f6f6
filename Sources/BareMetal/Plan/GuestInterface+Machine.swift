package import IaaS
import Kubernetes

/// The interfaces of a machine, before a boot and while it runs.
extension GuestInterface {
  /// The most interfaces that a server can have on its bus.
  package static let most = 32

  /// A machine's interfaces at a boot, with the MAC addresses that they get. `booted` are those that it has now, where it
  /// runs.
  package static func all(of machine: BareMetalMachine, booted: [GuestInterface] = []) -> [GuestInterface] {
    var known: [String: String] = [:]
    for address in machine.status?.addresses ?? [] { known[address.interface] = address.mac }
    for interface in booted { known[interface.name] = interface.mac }
    let derived = (0..<most).map { MACAddress.derived(uid: machine.metadata.uid ?? "", index: $0) }
    // What was asked for explicitly once is not kept; what was derived is, also where the list has changed since.
    known = known.filter { derived.contains($0.value) }
    let macs = macs(machine, known: known, taken: [], derived: derived)
    return zip(machine.spec.interfaces, macs).map { interface, mac in
      GuestInterface(name: interface.name, mac: mac, address: interface.address)
    }
  }

  /// A running machine's interfaces: those that it booted with, without those that the spec does not name any more, and
  /// then those that were added. Who stays keeps its place on the bus and its addresses.
  package static func running(_ machine: BareMetalMachine, booted: [GuestInterface]) -> [GuestInterface] {
    let names = Set(machine.spec.interfaces.map(\.name))
    let before = slots(booted)
    var taken = Set(before.keys)
    var placed = before.filter { names.contains($0.value.name) }.sorted { $0.key < $1.key }.map { ($0.key, $0.value) }
    let derived = (0..<most).map { MACAddress.derived(uid: machine.metadata.uid ?? "", index: $0) }
    let known = Dictionary(placed.map { ($0.1.name, $0.1.mac) }, uniquingKeysWith: { first, _ in first })
    // A card that is still on its way out has its address, too.
    let macs = macs(machine, known: known, taken: Set(booted.map(\.mac)), derived: derived)
    for (interface, mac) in zip(machine.spec.interfaces, macs) where known[interface.name] == nil {
      // A place that has just become free may still be occupied in the server; those are used last.
      guard let index = (0..<most).first(where: { !taken.contains($0) }) else { continue }
      taken.insert(index)
      placed.append((index, GuestInterface(name: interface.name, mac: mac, address: interface.address)))
    }
    return placed.enumerated().map { position, entry in
      var interface = entry.1
      interface.index = entry.0 == position ? nil : entry.0
      return interface
    }
  }

  /// The MAC address of each interface of the spec: what it asks for, what is known of it, or the first derived one,
  /// counted from its place in the list, that no other has.
  private static func macs(
    _ machine: BareMetalMachine, known: [String: String], taken: Set<String>, derived: [String]
  ) -> [String] {
    let interfaces = machine.spec.interfaces
    var macs = interfaces.map { $0.macAddress?.lowercased() ?? known[$0.name] }
    for index in interfaces.indices where macs[index] == nil {
      let order = derived.indices.map { derived[(index + $0) % derived.count] }
      macs[index] = order.first { !macs.contains($0) && !taken.contains($0) } ?? order[0]
    }
    return macs.compactMap { $0 }
  }

  /// Interfaces by their place on the bus.
  package static func slots(_ interfaces: [GuestInterface]) -> [Int: GuestInterface] {
    Dictionary(
      interfaces.enumerated().map { ($0.element.index ?? $0.offset, $0.element) },
      uniquingKeysWith: { first, _ in first })
  }

  /// What a server sees of interfaces: the MAC address at each place on the bus.
  package static func places(_ interfaces: [GuestInterface]) -> [Int: String] {
    slots(interfaces).mapValues(\.mac)
  }

  /// The place on the bus in a function's name, `nic-<index>-<name>`; nil for other names.
  package static func index(ofFunction name: String) -> Int? {
    let parts = name.split(separator: "-", maxSplits: 2, omittingEmptySubsequences: false)
    guard parts.count == 3, parts[0] == "nic" else { return nil }
    return Int(parts[1])
  }
}
