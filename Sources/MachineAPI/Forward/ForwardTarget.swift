import BareMetal
package import IaaS
import Kubernetes

/// Where a connection to a machine's port goes. Pure.
package enum ForwardTarget {
  /// - Parameter host: the machine's, as the API server has it.
  /// - Throws: `APIFailure` 409 where there is no address that certainly is the machine's, 501 where this bm-api connects
  ///   to no machines.
  package static func decide(
    _ machine: BareMetalMachine, on host: BareMetalHost, rule: AddressRule
  ) throws(APIFailure) -> MachineAddress {
    let key = machine.key
    guard !rule.networks.isEmpty else {
      throw APIFailure(
        501, "NotImplemented", "this bm-api connects to no machines; its operator starts it with --machine-networks")
    }
    guard let uid = machine.metadata.uid, host.status?.claim?.uid == uid else {
      throw .conflict(key.name, "machine \(key) does not hold its host any more")
    }
    guard machine.status?.bootedAt != nil else {
      throw .conflict(key.name, "machine \(key) is not on (\(machine.status?.message ?? "stopped")); start it first")
    }
    let isUnique = machine.status?.conditions?.condition(BareMetalMachine.ConditionType.addressesUnique)
    let isFree = host.status?.dpu?.conditions?.condition(HandlerPlan.addressesCondition)
    // What answers there may be somebody else's.
    if let doubt = [isUnique, isFree].compactMap({ $0 }).first(where: { $0.status == .false }) {
      throw .conflict(key.name, "the address of machine \(key) is not its own alone: \(doubt.message)")
    }
    // An address that the spec asks for stands there from the beginning. That it is the machine's is proven by the lease that
    // it took, or by its answer with its own MAC address, in this boot.
    let seen = Set(
      (host.status?.dpu?.interfaces ?? []).filter { $0.leasedAt != nil || $0.reachableAt != nil }
        .compactMap { Pair($0.mac, $0.address) })
    // The machine's status may be older than what is on the host now, and the host's of another boot: both have to agree.
    let both = (machine.status?.addresses ?? []).first { address in
      Pair(address.mac, address.address).map { seen.contains($0) } ?? false
    }
    guard let text = both?.address else {
      throw .conflict(
        key.name,
        "machine \(key) has no address yet that its DPU has seen it use; wait until it is reachable "
          + "(bmctl describe machine \(key.name) tells), or look at its console")
    }
    guard let address = MachineAddress(text) else {
      throw .conflict(key.name, "the address of machine \(key) is none")
    }
    if let objection = rule.objection(to: address) {
      throw .conflict(key.name, "bm-api does not connect to the address \(address) of machine \(key): \(objection)")
    }
    return address
  }

  private struct Pair: Hashable {
    var mac: String
    var address: String

    init?(_ mac: String?, _ address: String?) {
      guard let mac, let address, !address.isEmpty else { return nil }
      self.mac = mac.lowercased()
      self.address = address
    }
  }

  /// The port of the query.
  package static func port(_ text: String?) throws(APIFailure) -> Int {
    guard let text, text.utf8.count <= 5,
      text.utf8.allSatisfy({ (UInt8(ascii: "0")...UInt8(ascii: "9")).contains($0) }), let port = Int(text),
      (1...65535).contains(port)
    else { throw .badRequest("the parameter port is a number, 1 to 65535, such as ?port=22", field: "port") }
    return port
  }
}
