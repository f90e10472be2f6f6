package import IaaS
import JSON
package import Kubernetes

#if canImport(FoundationEssentials)
  import FoundationEssentials
#else
  import Foundation
#endif

/// An interface as the guest and the DPU must agree on it.
package struct GuestInterface: Sendable, Hashable {
  package var name: String
  /// Lower case.
  package var mac: String
  package var address: String?

  package init(name: String, mac: String, address: String? = nil) {
    self.name = name
    self.mac = mac
    self.address = address
  }

  /// A machine's interfaces with the MAC addresses that they get.
  package static func all(of machine: BareMetalMachine) -> [GuestInterface] {
    machine.spec.interfaces.enumerated().map { index, interface in
      GuestInterface(
        name: interface.name,
        mac: interface.macAddress?.lowercased()
          ?? MACAddress.derived(uid: machine.metadata.uid ?? "", index: index),
        address: interface.address)
    }
  }
}

/// What bm-handler needs to know to boot one machine: the content of the secret `host-<host>`.
package struct BootData: Sendable, Hashable {
  package var machine: ObjectKey
  package var machineUID: String
  /// The boot's token: opaque, another one for each boot.
  package var boot: String
  package var userData: String
  package var metaData: String
  package var networkConfig: String
  package var interfaces: [GuestInterface]

  package init(
    machine: ObjectKey, machineUID: String, boot: String, userData: String, metaData: String, networkConfig: String,
    interfaces: [GuestInterface]
  ) {
    self.machine = machine
    self.machineUID = machineUID
    self.boot = boot
    self.userData = userData
    self.metaData = metaData
    self.networkConfig = networkConfig
    self.interfaces = interfaces
  }

  /// The boot data that says that the machine wants nothing any more: seed disk and interfaces are to go. Without it
  /// they stay, because a secret that is not there may have been removed by mistake.
  package static func withdrawn(machine: ObjectKey, machineUID: String) -> BootData {
    BootData(
      machine: machine, machineUID: machineUID, boot: "", userData: "", metaData: "", networkConfig: "", interfaces: [])
  }

  package var isWithdrawn: Bool { boot.isEmpty }

  /// The boot's token: the machine's UID and the number of its boot.
  package static func token(machineUID: String, boot: Int64) -> String { "\(machineUID)/\(boot)" }

  /// The secret that carries it.
  package func secret(host: String) -> Secret {
    var metadata = ObjectMeta(name: Names.bootData(host: host), namespace: Names.systemNamespace)
    metadata.labels = [Names.hostLabel: host]
    metadata.annotations = [
      Names.machineAnnotation: machine.description, Names.machineUIDAnnotation: machineUID,
      Names.bootAnnotation: boot,
    ]
    return Secret(
      metadata: metadata, type: Names.bootDataType,
      data: [
        "user-data": Data(userData.utf8), "meta-data": Data(metaData.utf8),
        "network-config": Data(networkConfig.utf8), "interfaces.json": Data(interfacesJSON.utf8),
      ])
  }

  private var interfacesJSON: String {
    JSONValue.array(
      interfaces.map { interface in
        var value: JSONValue = ["name": .string(interface.name), "mac": .string(interface.mac)]
        if let address = interface.address { value["address"] = .string(address) }
        return value
      }
    ).text
  }

  /// Reads a secret; throws where it is not complete.
  package init(_ secret: Secret) throws(BareMetalError) {
    let operation = "read the boot data \(secret.key)"
    func missing(_ what: String) -> BareMetalError {
      BareMetalError(
        .invalid, operation: operation, message: "\(what) is missing; delete the secret, bm-controller writes it anew")
    }
    let annotations = secret.metadata.annotations ?? [:]
    guard let uid = annotations[Names.machineUIDAnnotation], let boot = annotations[Names.bootAnnotation] else {
      throw missing("an annotation")
    }
    let owner = (annotations[Names.machineAnnotation] ?? "").split(separator: "/", maxSplits: 1).map(String.init)
    guard owner.count == 2 else { throw missing("the annotation \(Names.machineAnnotation)") }
    guard let userData = secret.string("user-data"), let metaData = secret.string("meta-data"),
      let networkConfig = secret.string("network-config"), let interfacesText = secret.string("interfaces.json")
    else { throw missing("a key") }
    guard let list = (try? JSONValue.parse(interfacesText))?.arrayValue, list.count <= 32 else {
      throw missing("the list in interfaces.json")
    }
    var interfaces: [GuestInterface] = []
    for item in list {
      guard let name = item["name"]?.stringValue, let mac = item["mac"]?.stringValue,
        GuestInterface.isPlain(name), GuestInterface.isMAC(mac)
      else { throw missing("a name or MAC address in interfaces.json") }
      interfaces.append(GuestInterface(name: name, mac: mac, address: item["address"]?.stringValue))
    }
    self.init(
      machine: ObjectKey(namespace: owner[0], name: owner[1]), machineUID: uid, boot: boot, userData: userData,
      metaData: metaData, networkConfig: networkConfig, interfaces: interfaces)
  }
}

extension GuestInterface {
  /// Names end up in file names and configuration files: nothing but letters, digits and dashes.
  package static func isPlain(_ name: String) -> Bool {
    !name.isEmpty && name.utf8.count <= 15
      && name.utf8.allSatisfy { byte in
        (UInt8(ascii: "a")...UInt8(ascii: "z")).contains(byte) || (UInt8(ascii: "0")...UInt8(ascii: "9")).contains(byte)
          || byte == UInt8(ascii: "-")
      }
  }

  package static func isMAC(_ text: String) -> Bool {
    let parts = text.split(separator: ":", omittingEmptySubsequences: false)
    return parts.count == 6
      && parts.allSatisfy { $0.utf8.count == 2 && $0.allSatisfy { $0.isHexDigit && ($0.isNumber || $0.isLowercase) } }
  }
}
