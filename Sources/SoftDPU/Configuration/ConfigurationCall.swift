package import JSON

/// A call that brings back a part of the configuration, as SPDK's `save_config` writes it.
package struct ConfigurationCall: Sendable, Hashable {
  package var method: String
  package var parameters: JSONValue

  package init(method: String, parameters: JSONValue) {
    self.method = method
    self.parameters = parameters
  }

  package init?(_ value: JSONValue) {
    guard let method = value["method"]?.stringValue else { return nil }
    self.init(method: method, parameters: value["params"] ?? [:])
  }

  package var json: JSONValue { ["method": .string(method), "params": parameters] }

  /// What tells the call's result from the results of others.
  package var key: String {
    switch method {
    case "nvmf_subsystem_add_ns":
      return ConfigurationCall.key(namespace: parameters["namespace"]?["nsid"]?.intValue ?? 0, of: subject)
    case "nvmf_subsystem_add_listener":
      let address = parameters["listen_address"]
      return ConfigurationCall.key(
        listener: "\(address?["traddr"]?.stringValue ?? ""):\(address?["trsvcid"]?.stringValue ?? "")", of: subject)
    case "nvmf_subsystem_add_host":
      return ConfigurationCall.key(host: parameters["host"]?.stringValue ?? "", of: subject)
    case "bdev_nvme_attach_controller":
      return ConfigurationCall.key(
        path: "\(parameters["traddr"]?.stringValue ?? "") \(parameters["trsvcid"]?.stringValue ?? "")", of: subject)
    default: return ConfigurationCall.key(method, subject)
    }
  }

  static func key(_ method: String, _ subject: String) -> String { "\(method) \(subject)" }
  static func key(namespace id: Int, of nqn: String) -> String { "namespace \(nqn) \(id)" }
  static func key(listener address: String, of nqn: String) -> String { "listener \(nqn) \(address)" }
  static func key(host: String, of nqn: String) -> String { "host \(nqn) \(host)" }
  static func key(path: String, of name: String) -> String { key("bdev_nvme_attach_controller", "\(name) \(path)") }

  /// The name of what the call makes.
  var subject: String {
    for key in ["name", "ctrlr", "nbd_device", "nqn", "base_name", "trtype"] {
      if let name = parameters[key]?.stringValue { return name }
    }
    return ""
  }

  /// The subsystem in whose part the call is written down.
  var subsystem: String {
    let known = [("bdev_", "bdev"), ("vhost_", "vhost_blk"), ("nvmf_", "nvmf"), ("nbd_", "nbd")]
    return known.first { method.hasPrefix($0.0) }?.1 ?? "accel"
  }
}
