package import JSON

/// What is written down, as a value: the calls that make the configuration again, in an order in which each comes after
/// what it rests on.
package struct SavedConfiguration: Sendable {
  /// A change of what is written down.
  package enum Change: Sendable, Hashable {
    /// A call that made something new. It comes after all others, because it may rest on any of them.
    case add(ConfigurationCall)
    /// A call whose parameters have changed. It stays in its place, because others may rest on its result.
    case update(ConfigurationCall)
    /// What the calls with this key have made is gone.
    case remove(key: String)
  }

  /// A call that is gone leaves its place empty.
  private var entries: [ConfigurationCall?] = []
  /// The places of each key: several only where a file has it twice.
  private var places: [String: [Int]] = [:]

  /// The subsystems in the order in which they are brought back, with what each depends on.
  static let subsystems: [(name: String, dependsOn: [String])] = [
    ("accel", []), ("bdev", ["accel"]), ("vhost_blk", ["bdev"]), ("nvmf", ["bdev"]), ("nbd", ["bdev"]),
  ]

  package init(_ calls: [ConfigurationCall] = []) {
    for call in calls { append(call) }
  }

  /// Reads a file as SPDK's `save_config` writes it; nil where it is none.
  package init?(_ file: JSONValue) {
    guard let subsystems = file["subsystems"]?.arrayValue else { return nil }
    self.init(subsystems.flatMap { $0["config"]?.arrayValue ?? [] }.compactMap(ConfigurationCall.init))
  }

  /// The calls in the order in which they are to be made.
  package var calls: [ConfigurationCall] {
    let parts = Dictionary(grouping: entries.compactMap(\.self), by: \.subsystem)
    return SavedConfiguration.subsystems.flatMap { parts[$0.name] ?? [] }
  }

  /// As SPDK's `save_config` writes it.
  package var file: JSONValue {
    let parts = Dictionary(grouping: entries.compactMap(\.self), by: \.subsystem)
    let subsystems = SavedConfiguration.subsystems.map { subsystem -> JSONValue in
      ["subsystem": .string(subsystem.name), "config": .array((parts[subsystem.name] ?? []).map(\.json))]
    }
    return ["subsystems": .array(subsystems)]
  }

  package mutating func apply(_ change: Change) {
    switch change {
    case .add(let call):
      remove(call.key)
      append(call)
    case .update(let call):
      if let place = places[call.key]?.first {
        entries[place] = call
      } else {
        append(call)
      }
    case .remove(let key): remove(key)
    }
  }

  private mutating func append(_ call: ConfigurationCall) {
    places[call.key, default: []].append(entries.count)
    entries.append(call)
  }

  private mutating func remove(_ key: String) {
    for place in places.removeValue(forKey: key) ?? [] { entries[place] = nil }
  }
}

extension SavedConfiguration.Change {
  /// The key of what changes.
  var key: String {
    switch self {
    case .add(let call), .update(let call): call.key
    case .remove(let key): key
    }
  }

  package var json: JSONValue {
    switch self {
    case .add(let call): ["add": call.json]
    case .update(let call): ["update": call.json]
    case .remove(let key): ["remove": .string(key)]
    }
  }

  package init?(_ value: JSONValue) {
    guard let members = value.objectValue, members.count == 1, let (kind, content) = members.first else { return nil }
    switch kind {
    case "add":
      guard let call = ConfigurationCall(content) else { return nil }
      self = .add(call)
    case "update":
      guard let call = ConfigurationCall(content) else { return nil }
      self = .update(call)
    case "remove":
      guard let key = content.stringValue else { return nil }
      self = .remove(key: key)
    default: return nil
    }
  }
}
