import CLinux
import Dispatch
import Glibc
import JSONRPC
import Logging
import Synchronization

/// What the data plane has: volumes, and controllers that show them. The RPC server's queue changes it, one request
/// at a time.
final class Inventory: Sendable {
  struct Volume: Sendable {
    let device: FileDevice
    let reactor: Reactor
    /// Size in bytes as it was last read.
    var size: UInt64
    let hasOwnBlockSize: Bool
  }

  private struct State {
    var volumes: [String: Volume] = [:]
    var controllers: [String: VhostController] = [:]
  }

  let vhostDirectory: String
  let reactors: [Reactor]
  let logger: Logger
  private let stateDirectory: StateDirectory?
  private let state = Mutex(State())

  /// How long a delete waits for the front end to let go.
  static let releaseTime = DispatchTimeInterval.seconds(5)

  init(vhostDirectory: String, reactors: [Reactor], stateDirectory: StateDirectory?, logger: Logger) {
    self.vhostDirectory = vhostDirectory
    self.reactors = reactors
    self.stateDirectory = stateDirectory
    self.logger = logger
  }

  // MARK: Reading

  var volumes: [Volume] {
    state.withLock { $0.volumes.values.sorted { $0.device.parameters.name < $1.device.parameters.name } }
  }

  func volume(_ name: String) -> Volume? {
    state.withLock { state in
      state.volumes[name] ?? state.volumes.values.first { $0.device.parameters.uuid == name }
    }
  }

  var controllers: [VhostController] { state.withLock { $0.controllers.values.sorted { $0.name < $1.name } } }

  func controller(_ name: String) -> VhostController? { state.withLock { $0.controllers[name] } }

  // MARK: Volumes

  /// Opens a file as a volume. EEXIST where the name or the UUID is taken.
  func createVolume(_ parameters: FileDevice.Parameters, blockSize: UInt32?) throws(SoftDPUError) {
    let operation = "create bdev \(parameters.name)"
    guard volume(parameters.name) == nil, volume(parameters.uuid) == nil else { throw .system(EEXIST, operation) }
    let device = try FileDevice(parameters, reportedBlockSize: blockSize)
    let size = try device.currentSize()
    state.withLock { state in
      // The reactor with the fewest volumes.
      var load = [Int](repeating: 0, count: reactors.count)
      for volume in state.volumes.values { load[volume.reactor.number] += 1 }
      let number = load.indices.min { load[$0] < load[$1] } ?? 0
      state.volumes[parameters.name] = Volume(
        device: device, reactor: reactors[number], size: size, hasOwnBlockSize: blockSize != nil)
    }
    do throws(SoftDPUError) {
      try save()
    } catch {
      _ = state.withLock { $0.volumes.removeValue(forKey: parameters.name) }
      throw error
    }
    logger.info(
      "volume opened",
      metadata: [
        "bdev": "\(parameters.name)", "file": "\(parameters.file)", "bytes": "\(size)",
        "direct": "\(device.hasDirectIO)",
      ])
  }

  /// Closes a volume. EBUSY where a controller shows it.
  func deleteVolume(_ name: String) throws(SoftDPUError) {
    let operation = "delete bdev \(name)"
    let outcome = state.withLock { state -> Result<Volume, SoftDPUError> in
      guard let volume = state.volumes[name] else { return .failure(.system(ENODEV, operation)) }
      guard !state.controllers.values.contains(where: { $0.device === volume.device }) else {
        return .failure(.system(EBUSY, operation))
      }
      state.volumes[name] = nil
      return .success(volume)
    }
    let volume = try outcome.get()
    do throws(SoftDPUError) {
      try save()
    } catch {
      state.withLock { $0.volumes[name] = volume }
      throw error
    }
    logger.info("volume closed", metadata: ["bdev": "\(name)"])
  }

  /// Takes notice of the file's size. EBUSY where it shrank under a controller.
  func rescanVolume(_ name: String) throws(SoftDPUError) {
    let operation = "rescan bdev \(name)"
    guard let volume = volume(name) else { throw .system(ENODEV, operation) }
    let size = try volume.device.currentSize()
    guard size != volume.size else { return }
    let users = controllers.filter { $0.device === volume.device }
    guard size > volume.size || users.isEmpty else { throw .system(EBUSY, operation) }
    state.withLock { $0.volumes[volume.device.parameters.name]?.size = size }
    let device = volume.device
    volume.reactor.post { device.resize(size) }
    for controller in users { controller.announceConfiguration() }
    logger.info("volume resized", metadata: ["bdev": "\(name)", "bytes": "\(size)"])
  }

  // MARK: Controllers

  /// Shows a volume at a socket of its own. EEXIST where the name is taken, ENODEV where the volume is absent.
  func createController(_ name: String, volume volumeName: String, isReadOnly: Bool) throws(SoftDPUError) {
    let operation = "create controller \(name)"
    guard isFileName(name) else {
      throw SoftDPUError(code: .invalid, operation: operation, message: "the name is no file name")
    }
    guard "\(vhostDirectory)/\(name)".utf8.count <= 107 else { throw .system(ENAMETOOLONG, operation) }
    guard controller(name) == nil else { throw .system(EEXIST, operation) }
    guard let volume = volume(volumeName) else { throw .system(ENODEV, operation) }
    let controller = try openController(name, volume, isReadOnly: isReadOnly)
    state.withLock { $0.controllers[name] = controller }
    do throws(SoftDPUError) {
      try save()
    } catch {
      _ = state.withLock { $0.controllers.removeValue(forKey: name) }
      unsafe unlink(controller.path)
      controller.retire {}
      throw error
    }
    controller.start()
    logger.info("controller created", metadata: ["controller": "\(name)", "bdev": "\(volumeName)"])
  }

  private func openController(
    _ name: String, _ volume: Volume, isReadOnly: Bool
  ) throws(SoftDPUError) -> VhostController {
    let path = "\(vhostDirectory)/\(name)"
    let listener: CInt
    do throws(JSONRPCError) {
      listener = try UnixSocket.listenInPlace(path: path)
    } catch {
      throw SoftDPUError(code: .system(EIO), operation: error.operation, message: error.message)
    }
    return VhostController(
      name: name, path: path, device: volume.device, isReadOnly: isReadOnly, reactor: volume.reactor,
      listener: listener, logger: logger)
  }

  /// Takes a controller away: first its socket, which is what a chassis sees, then, when the front end let go, the
  /// controller. EBUSY where the front end did not let go in time: the socket stays away, the controller stays, and
  /// the delete can be repeated.
  func deleteController(_ name: String, _ done: @escaping @Sendable (Result<Void, SoftDPUError>) -> Void) {
    let operation = "delete controller \(name)"
    guard let controller = controller(name) else { return done(.failure(.system(ENODEV, operation))) }
    unsafe unlink(controller.path)
    let once = Once(done)
    controller.retire { [self] in
      // Off the reactor's thread: saving waits for the disk.
      DispatchQueue.global().async { [self] in
        let isPresent = state.withLock { state -> Bool in
          guard state.controllers[name] === controller else { return false }
          state.controllers[name] = nil
          return true
        }
        do throws(SoftDPUError) {
          if isPresent {
            try save()
            logger.info("controller deleted", metadata: ["controller": "\(name)"])
          }
          once.call(.success(()))
        } catch {
          once.call(.failure(error))
        }
      }
    }
    DispatchQueue.global().asyncAfter(deadline: .now() + Inventory.releaseTime) {
      once.call(.failure(.system(EBUSY, operation)))
    }
  }

  private func isFileName(_ name: String) -> Bool {
    !name.isEmpty && name.utf8.count <= 255 && !name.hasPrefix(".") && !name.utf8.contains { $0 == 0x2F || $0 < 0x21 }
  }

  // MARK: Life

  /// Writes down what is there, where there is a place for it.
  private func save() throws(SoftDPUError) {
    guard let stateDirectory else { return }
    let result = saving.withLock { _ -> Result<Void, SoftDPUError> in
      let saved = state.withLock { state -> SavedState in
        var saved = SavedState()
        saved.devices = state.volumes.values.map(\.device.parameters).sorted { $0.name < $1.name }
        saved.controllers = state.controllers.values
          .map {
            SavedState.Controller(
              name: $0.name, device: $0.device.parameters.name, isReadOnly: $0.isReadOnly)
          }
          .sorted { $0.name < $1.name }
        return saved
      }
      do throws(SoftDPUError) {
        return .success(try stateDirectory.save(saved))
      } catch {
        return .failure(error)
      }
    }
    try result.get()
  }

  /// One save at a time, so that an older state never replaces a newer one.
  private let saving = Mutex(())

  /// Makes again what the last process had, and removes sockets of controllers that it had deleted.
  func restore() throws(SoftDPUError) {
    guard let stateDirectory, let saved = try stateDirectory.load() else { return }
    for parameters in saved.devices {
      do throws(SoftDPUError) {
        let device = try reopen(parameters)
        let size = try device.currentSize()
        state.withLock { state in
          let reactor = reactors[state.volumes.count % reactors.count]
          state.volumes[parameters.name] = Volume(
            device: device, reactor: reactor, size: size, hasOwnBlockSize: true)
        }
      } catch {
        logger.error("a volume could not be restored", metadata: ["bdev": "\(parameters.name)", "error": "\(error)"])
      }
    }
    for entry in saved.controllers {
      do throws(SoftDPUError) {
        guard let volume = volume(entry.device) else { throw .system(ENODEV, "open \(entry.device)") }
        let controller = try openController(entry.name, volume, isReadOnly: entry.isReadOnly)
        state.withLock { $0.controllers[entry.name] = controller }
        controller.start()
      } catch {
        logger.error(
          "a controller could not be restored", metadata: ["controller": "\(entry.name)", "error": "\(error)"])
      }
    }
    removeOrphans(keeping: Set(saved.controllers.map(\.name)))
    logger.info(
      "configuration restored", metadata: ["volumes": "\(volumes.count)", "controllers": "\(controllers.count)"])
  }

  /// Opens a volume that the last process had. After a kill the kernel may take a moment to let go of its requests,
  /// and with them of the file's lock.
  private func reopen(_ parameters: FileDevice.Parameters) throws(SoftDPUError) -> FileDevice {
    var attempt = 0
    while true {
      do throws(SoftDPUError) {
        return try FileDevice(parameters, reportedBlockSize: parameters.blockSize)
      } catch {
        attempt += 1
        guard error.code == .system(EBUSY), attempt < 100 else { throw error }
        usleep(50_000)
      }
    }
  }

  /// Removes sockets that belong to no controller and have no listener: a delete was cut short between its steps.
  private func removeOrphans(keeping names: Set<String>) {
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

  /// Lets go of all volumes, and so of their files' locks. After `close` and the end of the reactors.
  func forget() { state.withLock { $0 = State() } }

  /// Ends all connections after their requests; sockets stay, so that front ends find the next process there.
  func close() {
    let group = DispatchGroup()
    for controller in controllers {
      group.enter()
      controller.close { group.leave() }
    }
    if group.wait(timeout: .now() + Inventory.releaseTime) == .timedOut {
      logger.warning("requests are still in flight; stopping without them")
    }
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
