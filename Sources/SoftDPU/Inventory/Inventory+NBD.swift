import Dispatch
import Glibc
import JSON
import Logging

/// How the clients of an export are to be served with TLS.
struct NBDEncryption: Sendable, Hashable {
  enum Mode: String, Sendable { case allowed, required }

  var mode: Mode
  var files: TLSFiles
}

/// A device that is exported over NBD (`nbd_start_disk`).
final class NBDDisk: Sendable {
  /// As the client gave it; the disk's name.
  let address: String
  let exportName: String
  let device: BlockDevice
  let server: NBDServer
  let encryption: NBDEncryption?

  init(address: String, exportName: String, device: BlockDevice, server: NBDServer, encryption: NBDEncryption?) {
    self.address = address
    self.exportName = exportName
    self.device = device
    self.server = server
    self.encryption = encryption
  }

  /// The call that makes it again.
  var creation: ConfigurationCall {
    var parameters: JSONValue = ["bdev_name": .string(device.name), "nbd_device": .string(address)]
    if let encryption {
      parameters["tls_mode"] = .string(encryption.mode.rawValue)
      for (parameter, path) in encryption.files.named { parameters[parameter] = .string(path) }
    }
    return ConfigurationCall(method: "nbd_start_disk", parameters: parameters)
  }
}

extension Inventory {
  var nbdDisks: [NBDDisk] { change { $0.nbdDisks.values.sorted { $0.address < $1.address } } }

  func nbdDisk(_ address: String) -> NBDDisk? { change { $0.nbdDisks[address] } }

  /// Exports a device. EBUSY where the address has such an export, EINVAL where the address is none, where the files of
  /// TLS are not sound, or are others than those that the address has.
  func startNBD(
    device deviceName: String, at text: String, encryption: NBDEncryption? = nil
  ) throws(SoftDPUError) -> NBDDisk {
    let operation = "export \(deviceName) at \(text)"
    guard let device = device(deviceName) else { throw .system(ENODEV, operation) }
    guard let address = NBDAddress(text) else {
      throw SoftDPUError(
        code: .invalid, operation: operation,
        message: "nbd_device is a socket's path, nbd+unix:///NAME?socket=PATH or nbd://ADDRESS:PORT/NAME")
    }
    let name = address.export ?? device.name
    guard nbdDisk(text) == nil else { throw .system(EBUSY, operation) }
    let present = change { state in state.nbdDisks.values.first { $0.server.address.place == address.place }?.server }
    if let present, present.export(name) != nil { throw .system(EBUSY, operation) }
    let server: NBDServer
    if let present {
      guard present.tls?.files == encryption?.files else {
        throw SoftDPUError(
          code: .invalid, operation: operation,
          message: "all exports at \(address) have the same TLS files: give those, or another address")
      }
      server = present
    } else {
      let credentials: TLSCredentials?
      if let encryption {
        credentials = try TLSCredentials(encryption.files, logger: logger)
      } else {
        credentials = nil
      }
      server = NBDServer(
        address: address, listener: try address.listen(), tls: credentials, reactor: device.reactor, limits: limits,
        logger: logger)
    }
    let disk = NBDDisk(address: text, exportName: name, device: device, server: server, encryption: encryption)
    do throws(SoftDPUError) {
      // What a client knows of the size is fixed by the protocol when it connects.
      try device.open(
        disk, BlockDevice.User(description: "NBD export \(text)", isExclusive: false, onResize: { _ in }))
      server.add(
        NBDServer.Export(name: name, device: device, requiresTLS: encryption?.mode == .required))
      change { $0.nbdDisks[text] = disk }
      try record(.add(disk.creation))
    } catch {
      _ = change { $0.nbdDisks.removeValue(forKey: text) }
      server.remove(name) {}
      device.close(disk)
      if present == nil { closeServer(server) {} }
      throw error
    }
    if present == nil { server.start() }
    logger.info("NBD export created", metadata: ["address": "\(text)", "bdev": "\(deviceName)"])
    return disk
  }

  private func closeServer(_ server: NBDServer, _ done: @escaping @Sendable () -> Void) {
    if case .unix(let path) = server.address.place { unsafe unlink(path) }
    // The closure keeps the server until its last client is gone.
    server.close { [server] in
      _ = server
      done()
    }
  }

  /// Ends an export and its clients. ENODEV where there is none.
  func stopNBD(_ address: String, _ done: @escaping @Sendable (Result<Void, SoftDPUError>) -> Void) {
    guard let disk = change({ $0.nbdDisks.removeValue(forKey: address) }) else {
      return done(.failure(.system(ENODEV, "stop NBD export \(address)")))
    }
    do throws(SoftDPUError) {
      try record(.remove(key: disk.creation.key))
    } catch {
      change { $0.nbdDisks[address] = disk }
      return done(.failure(error))
    }
    disk.server.remove(disk.exportName) { [self] in
      // Off the reactor's thread.
      DispatchQueue.global().async { [self] in
        disk.device.close(disk)
        logger.info("NBD export removed", metadata: ["address": "\(address)"])
        guard disk.server.names.isEmpty else { return done(.success(())) }
        closeServer(disk.server) { done(.success(())) }
      }
    }
  }
}
