import CLinux
import Dispatch
import Glibc
import JSON
import JSONRPC
import Logging
import Synchronization

extension Inventory {
  /// Shows a device at a socket of its own. EEXIST where the name is taken, ENODEV where the device is absent.
  func createController(_ name: String, device deviceName: String, isReadOnly: Bool) throws(SoftDPUError) {
    let operation = "create controller \(name)"
    guard isFileName(name) else {
      throw SoftDPUError(code: .invalid, operation: operation, message: "the name is no file name")
    }
    guard "\(vhostDirectory)/\(name)".utf8.count <= 107 else { throw .system(ENAMETOOLONG, operation) }
    guard controller(name) == nil else { throw .system(EEXIST, operation) }
    guard let device = device(deviceName) else { throw .system(ENODEV, operation) }
    let controller = try openController(name, device, isReadOnly: isReadOnly)
    change { $0.controllers[name] = controller }
    do throws(SoftDPUError) {
      try record(.add(controller.creation))
    } catch {
      change { $0.controllers[name] = nil }
      unsafe unlink(controller.path)
      controller.retire {}
      device.close(controller)
      throw error
    }
    controller.start()
    logger.info("controller created", metadata: ["controller": "\(name)", "bdev": "\(deviceName)"])
  }

  private func openController(
    _ name: String, _ device: BlockDevice, isReadOnly: Bool
  ) throws(SoftDPUError) -> VhostController {
    let path = "\(vhostDirectory)/\(name)"
    let listener: CInt
    do throws(JSONRPCError) {
      listener = try UnixSocket.listenInPlace(path: path)
    } catch {
      throw SoftDPUError(code: .system(EADDRINUSE), operation: error.operation, message: error.message)
    }
    let controller = VhostController(
      name: name, path: path, device: device, isReadOnly: isReadOnly, reactor: device.reactor, listener: listener,
      logger: logger)
    do throws(SoftDPUError) {
      try device.open(
        controller,
        BlockDevice.User(
          description: "vhost controller \(name)", isExclusive: false,
          onResize: { [weak controller] _ in controller?.announceConfiguration() }))
    } catch {
      unsafe unlink(path)
      controller.retire {}
      throw error
    }
    return controller
  }

  /// Takes a controller away: first its socket, which is what a chassis sees, then, when the front end let go, the
  /// controller. EBUSY where the front end did not let go in time: the socket stays away, the controller stays, and
  /// the delete can be repeated, which does not wait as long again.
  /// - Parameter isForced: Cuts the front end off, after the requests that are under way.
  func deleteController(
    _ name: String, isForced: Bool = false, _ done: @escaping @Sendable (Result<Void, SoftDPUError>) -> Void
  ) {
    let operation = "delete controller \(name)"
    guard let controller = controller(name) else { return done(.failure(.system(ENODEV, operation))) }
    if controller.isRetiring, controller.isConnected, !isForced {
      // Under way already: how things are in a moment.
      DispatchQueue.global().asyncAfter(deadline: .now() + Inventory.repeatedReleaseTime) { [self] in
        done(self.controller(name) === controller ? .failure(.system(EBUSY, operation)) : .success(()))
      }
      return
    }
    unsafe unlink(controller.path)
    let once = Once(done)
    let gone: @Sendable () -> Void = { [self] in
      // Off the reactor's thread: saving waits for the disk.
      DispatchQueue.global().async { [self] in
        let isPresent = change { state -> Bool in
          guard state.controllers[name] === controller else { return false }
          state.controllers[name] = nil
          return true
        }
        do throws(SoftDPUError) {
          if isPresent {
            try record(.remove(key: controller.creation.key))
            controller.device.close(controller)
            logger.info("controller deleted", metadata: ["controller": "\(name)"])
          }
          once.call(.success(()))
        } catch {
          // Still written down, so it would be back after a restart: it stays, and the delete can be repeated.
          change { $0.controllers[name] = controller }
          once.call(.failure(error))
        }
      }
    }
    if isForced { controller.close(then: gone) } else { controller.retire(then: gone) }
    DispatchQueue.global().asyncAfter(deadline: .now() + Inventory.releaseTime) {
      once.call(.failure(.system(EBUSY, operation)))
    }
  }

  private func isFileName(_ name: String) -> Bool {
    !name.isEmpty && name.utf8.count <= 255 && !name.hasPrefix(".") && !name.utf8.contains { $0 == 0x2F || $0 < 0x21 }
  }

  /// Removes sockets that belong to no controller and have no listener: a delete was cut short between its steps.
  func removeOrphans() {
    let names = Set(controllers.map(\.name))
    guard let directory = unsafe opendir(vhostDirectory) else { return }
    defer { unsafe closedir(directory) }
    while let entry = unsafe readdir(directory) {
      let name = unsafe withUnsafeBytes(of: entry.pointee.d_name) {
        unsafe String(decoding: $0.prefix { $0 != 0 }, as: UTF8.self)
      }
      let path = "\(vhostDirectory)/\(name)"
      var status = stat()
      guard !names.contains(name), unsafe lstat(path, &status) == 0, status.st_mode & S_IFMT == S_IFSOCK,
        !UnixSocket.hasListener(path: path)
      else { continue }
      unsafe unlink(path)
      logger.info("removed a socket without a controller", metadata: ["socket": "\(path)"])
    }
  }
}

extension VhostController {
  /// The call that makes it again after a restart.
  var creation: ConfigurationCall {
    ConfigurationCall(
      method: "vhost_create_blk_controller",
      parameters: ["ctrlr": .string(name), "dev_name": .string(device.name), "readonly": .bool(isReadOnly)])
  }
}

/// Passes on the first of several results.
private final class Once: Sendable {
  private let done: Mutex<(@Sendable (Result<Void, SoftDPUError>) -> Void)?>

  init(_ done: @escaping @Sendable (Result<Void, SoftDPUError>) -> Void) { self.done = Mutex(done) }

  func call(_ result: Result<Void, SoftDPUError>) {
    let done = self.done.withLock { done in
      defer { done = nil }
      return done
    }
    done?(result)
  }
}
