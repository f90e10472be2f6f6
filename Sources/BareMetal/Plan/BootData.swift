import IaaS
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
  /// Its place on the bus, where that is not its place in the list.
  package var index: Int?

  package init(name: String, mac: String, address: String? = nil, index: Int? = nil) {
    self.name = name
    self.mac = mac
    self.address = address
    self.index = index
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
  /// The interfaces at the boot, from which the network configuration may be made, where others are plugged by now.
  package var bootInterfaces: [GuestInterface]?

  package init(
    machine: ObjectKey, machineUID: String, boot: String, userData: String, metaData: String, networkConfig: String,
    interfaces: [GuestInterface], bootInterfaces: [GuestInterface]? = nil
  ) {
    self.machine = machine
    self.machineUID = machineUID
    self.boot = boot
    self.userData = userData
    self.metaData = metaData
    self.networkConfig = networkConfig
    self.interfaces = interfaces
    self.bootInterfaces = bootInterfaces
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
    var data = [
      "user-data": Data(userData.utf8), "meta-data": Data(metaData.utf8),
      "network-config": Data(networkConfig.utf8), "interfaces.json": Data(Self.json(interfaces).utf8),
    ]
    if let bootInterfaces { data["boot-interfaces.json"] = Data(Self.json(bootInterfaces).utf8) }
    return Secret(metadata: metadata, type: Names.bootDataType, data: data)
  }

  private static func json(_ interfaces: [GuestInterface]) -> String {
    JSONValue.array(
      interfaces.map { interface in
        var value: JSONValue = ["name": .string(interface.name), "mac": .string(interface.mac)]
        if let address = interface.address { value["address"] = .string(address) }
        if let index = interface.index { value["index"] = .integer(Int64(index)) }
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
    guard let interfaces = Self.interfaces(interfacesText) else {
      throw missing("the list, a name, a MAC address or a place in interfaces.json")
    }
    var bootInterfaces: [GuestInterface]?
    if let text = secret.string("boot-interfaces.json") {
      guard let list = Self.interfaces(text) else { throw missing("the list in boot-interfaces.json") }
      bootInterfaces = list
    }
    self.init(
      machine: ObjectKey(namespace: owner[0], name: owner[1]), machineUID: uid, boot: boot, userData: userData,
      metaData: metaData, networkConfig: networkConfig, interfaces: interfaces, bootInterfaces: bootInterfaces)
  }

  private static func interfaces(_ text: String) -> [GuestInterface]? {
    guard let list = (try? JSONValue.parse(text))?.arrayValue, list.count <= GuestInterface.most else { return nil }
    var interfaces: [GuestInterface] = []
    for item in list {
      guard let name = item["name"]?.stringValue, let mac = item["mac"]?.stringValue,
        GuestInterface.isPlain(name), GuestInterface.isMAC(mac)
      else { return nil }
      var index: Int?
      if let value = item["index"] {
        guard let number = value.intValue, (0..<GuestInterface.most).contains(number) else { return nil }
        index = number
      }
      interfaces.append(GuestInterface(name: name, mac: mac, address: item["address"]?.stringValue, index: index))
    }
    // Two at one place on the bus would take turns there.
    return GuestInterface.slots(interfaces).count == interfaces.count ? interfaces : nil
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
