import JSON
import Synchronization

/// One life of the server between power on and power off: a QEMU process and the connection to its monitor.
final class Machine: Sendable {
  /// What QEMU told since this process connected to it.
  struct Signals: Sendable {
    /// The guest has powered itself off.
    var hasShutDown = false
    /// The guest's kernel has panicked, and told so.
    var hasPanicked = false
    var isDisconnected = false
    /// Functions that the guest has refused to let go of since the machine was asked last.
    var refusals: Set<String> = []
  }

  private final class Relay: Sendable {
    let signals = Mutex(Signals())
  }

  let process: QEMUProcess
  let client: QMPClient
  private let relay: Relay
  let version: QEMUVersion

  var signals: Signals { relay.signals.withLock { $0 } }

  /// Connects to a QEMU that runs; `bell` rings whenever it tells something.
  static func connect(
    _ process: QEMUProcess, configuration: ChassisConfiguration, bell: Doorbell
  ) async throws -> Machine {
    let relay = Relay()
    let client = try client(at: configuration.monitorSocket, relay: relay, bell: bell)
    try await client.negotiate()
    let version = QEMUVersion(try await client.execute("query-version"))
    let machine = Machine(process, client: client, relay: relay, version: version)
    // What happened before the connection is only in the state.
    switch try await machine.client.execute("query-status")["status"]?.stringValue {
    case "shutdown": machine.relay.signals.withLock { $0.hasShutDown = true }
    case "guest-panicked": machine.relay.signals.withLock { $0.hasPanicked = true }
    default: break
    }
    return machine
  }

  private init(_ process: QEMUProcess, client: QMPClient, relay: Relay, version: QEMUVersion) {
    self.process = process
    self.client = client
    self.relay = relay
    self.version = version
  }

  private static func client(at path: String, relay: Relay, bell: Doorbell) throws -> QMPClient {
    try QMPClient(
      path: path,
      onEvent: { event in
        let isNews = relay.signals.withLock { signals in
          switch event.name {
          case "SHUTDOWN": signals.hasShutDown = true
          case "GUEST_PANICKED": signals.hasPanicked = true
          case "RESET": signals.hasPanicked = false
          case "DEVICE_DELETED": break
          case "DEVICE_UNPLUG_GUEST_ERROR":
            // Without a name the device is one that is not ours.
            guard let id = event.data["device"]?.stringValue else { return false }
            signals.refusals.insert(id)
          default: return false
          }
          return true
        }
        if isNews { bell.ring() }
      },
      onClose: {
        relay.signals.withLock { $0.isDisconnected = true }
        bell.ring()
      })
  }

  /// Whether the machine was started but has not run its first instruction.
  func isBeforeBoot() async throws -> Bool {
    try await client.execute("query-status")["status"]?.stringValue == "prelaunch"
  }

  func boot() async throws { try await client.execute("cont") }

  /// Presses the power button: the operating system may shut down.
  func pressPowerButton() async throws { try await client.execute("system_powerdown") }

  func reset() async throws { try await client.execute("system_reset") }

  func interrupt() async throws { try await client.execute("inject-nmi") }

  /// Ends QEMU in order; throws if it does not go.
  func quit() async throws {
    _ = try? await client.execute("quit", timeout: .seconds(2))
    for _ in 0..<100 where process.isAlive { try await Task.sleep(for: .milliseconds(10)) }
    try await process.kill()
  }

  // MARK: - Functions

  /// The functions that are plugged, read back from QEMU.
  func plugged() async throws -> [BusPlan.Plugged] {
    let children = try await client.execute("qom-list", ["path": "/machine/peripheral"]).arrayValue ?? []
    var plugged: [BusPlan.Plugged] = []
    for child in children {
      guard let id = child["name"]?.stringValue, id.hasPrefix("blk-") || id.hasPrefix("nic-") else { continue }
      let path: JSONValue = .string("/machine/peripheral/" + id)
      // Between the list and this the guest may have let the device go.
      guard let bus = try? await client.execute("qom-get", ["path": path, "property": "parent_bus"]).stringValue,
        let port = bus.split(separator: "/").last.flatMap({ Int($0.dropFirst(2)) })
      else { continue }
      var mac: String?
      if id.hasPrefix("nic-") {
        mac = try? await client.execute("qom-get", ["path": path, "property": "mac"]).stringValue?.lowercased()
      }
      plugged.append(BusPlan.Plugged(id: id, port: port, mac: mac))
    }
    return plugged.sorted { $0.id < $1.id }
  }

  /// Plugs a function into a port.
  ///
  /// - Parameters:
  ///   - bootIndex: the function's place in the firmware's boot order; nil leaves it out.
  ///   - isBootROM: a network card gets its option ROM, so that the firmware can boot from it.
  func plug(_ function: BusFunction, port: Int, bootIndex: Int?, isBootROM: Bool) async throws {
    // What an attempt that was cut short has left would be in the way.
    await removeBackend(function.id, isNIC: function.isNIC)
    do {
      var device: JSONValue = ["id": .string(function.id), "bus": .string("rp\(port)")]
      switch function.kind {
      case .disk(let socket):
        let address: JSONValue = ["type": "unix", "data": ["path": .string(socket)]]
        var data: JSONValue = ["addr": address, "server": false]
        // While a data plane is away the guest's requests wait; the sooner it is found again the better.
        if version.hasReconnectMilliseconds { data["reconnect-ms"] = 100 } else { data["reconnect"] = 1 }
        try await client.execute(
          "chardev-add", ["id": .string("chr-" + function.id), "backend": ["type": "socket", "data": data]])
        device["driver"] = "vhost-user-blk-pci"
        device["chardev"] = .string("chr-" + function.id)
      case .nic(let mac, let tap):
        try await client.execute(
          "netdev_add",
          [
            "type": "tap", "id": .string("net-" + function.id), "ifname": .string(tap), "script": "no",
            "downscript": "no",
          ])
        device["driver"] = "virtio-net-pci"
        device["netdev"] = .string("net-" + function.id)
        device["mac"] = .string(mac)
        if !isBootROM { device["romfile"] = "" }
      }
      if let bootIndex { device["bootindex"] = .integer(Int64(bootIndex)) }
      try await client.execute("device_add", device)
    } catch {
      await removeBackend(function.id, isNIC: function.isNIC)
      throw error
    }
  }

  /// Asks the guest to let a function go. Whether it has is read back with `plugged`; QEMU rings when it has.
  func requestUnplug(_ id: String) async throws {
    _ = relay.signals.withLock { $0.refusals.remove(id) }
    do {
      try await client.execute("device_del", ["id": .string(id)])
    } catch let error as SoftHostError where error.code == .refused {
      // Asked for already, or gone already: what counts is what is read back.
    }
  }

  /// Lets go of what a function was connected to that the guest has let go of.
  func finishUnplug(_ id: String) async { await removeBackend(id, isNIC: id.hasPrefix("nic-")) }

  /// Lets go of disks' connections whose devices are gone: a chassis that was killed between the two left them, and the
  /// data plane takes them for a server that holds on.
  func removeOrphans(_ plugged: [BusPlan.Plugged]) async throws {
    let present = Set(plugged.map(\.id))
    for device in try await client.execute("query-chardev").arrayValue ?? [] {
      guard let label = device["label"]?.stringValue, label.hasPrefix("chr-blk-") else { continue }
      let id = String(label.dropFirst(4))
      if !present.contains(id) { await removeBackend(id, isNIC: false) }
    }
  }

  /// Removes what a device was connected to; QEMU still holds it for a moment after the device is gone.
  private func removeBackend(_ id: String, isNIC: Bool) async {
    for attempt in 0..<20 {
      do {
        if isNIC {
          try await client.execute("netdev_del", ["id": .string("net-" + id)])
        } else {
          try await client.execute("chardev-remove", ["id": .string("chr-" + id)])
        }
        return
      } catch let error as SoftHostError where error.code == .refused && error.message.contains("busy") && attempt < 19
      {
        try? await Task.sleep(for: .milliseconds(25))
      } catch {
        return
      }
    }
  }
}

extension BusFunction {
  var isNIC: Bool {
    if case .nic = kind { return true }
    return false
  }
}
