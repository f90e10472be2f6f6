import Dispatch
import Glibc
import JSON
import Logging
import Synchronization

/// A remote subsystem and the calls that connected it.
final class NVMeAttachment: Sendable {
  let controller: InitiatorController
  private let paths = Mutex<[(place: NVMfTarget.ListenAddress, parameters: JSONValue)]>([])

  init(_ controller: InitiatorController) { self.controller = controller }

  var places: [NVMfTarget.ListenAddress] { paths.withLock { $0.map(\.place) } }
  var calls: [ConfigurationCall] {
    paths.withLock { paths in
      paths.map { NVMeAttachment.call($0.parameters) }
    }
  }

  static func call(_ parameters: JSONValue) -> ConfigurationCall {
    ConfigurationCall(method: "bdev_nvme_attach_controller", parameters: parameters)
  }

  func add(_ place: NVMfTarget.ListenAddress, _ parameters: JSONValue) {
    paths.withLock { paths in
      paths.removeAll { $0.place == place }
      paths.append((place, parameters))
    }
  }

  /// Whether nobody tries to connect this path any more.
  func hasGivenUp(_ place: NVMfTarget.ListenAddress) -> Bool {
    controller.reports.contains { $0.place == place && $0.state == InitiatorPath.State.failed.rawValue }
  }

  func remove(_ place: NVMfTarget.ListenAddress) { paths.withLock { $0.removeAll { $0.place == place } } }
}

extension Inventory {
  var nvmeAttachments: [NVMeAttachment] {
    change { state in state.nvme.values.sorted { $0.controller.name < $1.controller.name } }
  }

  func nvmeAttachment(_ name: String) -> NVMeAttachment? { change { $0.nvme[name] } }

  /// Connects a remote subsystem, or another path to it; the names of its devices. EALREADY where the path is there; one that was given up
  /// is tried anew.
  func attach(
    _ controller: @autoclosure () -> InitiatorController, name: String, subsystemNQN: String,
    at place: NVMfTarget.ListenAddress, options: InitiatorController.Options, parameters: JSONValue,
    _ done: @escaping @Sendable (Result<[String], SoftDPUError>) -> Void
  ) {
    let operation = "attach \(name)"
    let present = nvmeAttachment(name)
    if let present, present.controller.subsystemNQN == subsystemNQN, present.hasGivenUp(place) {
      return restart(present, at: place, options, parameters, done)
    }
    if let present, present.controller.subsystemNQN != subsystemNQN || present.places.contains(place) {
      return done(.failure(.system(EALREADY, operation)))
    }
    let attachment = present ?? NVMeAttachment(controller())
    if present == nil { change { $0.nvme[name] = attachment } }
    attachment.add(place, parameters)
    if options.isFailover { attachment.controller.useOnePath() }
    attachment.controller.connect(place) { [self] result in
      // Off the reactor's thread: saving waits for the disk.
      DispatchQueue.global().async { [self] in
        do throws(SoftDPUError) {
          let namespaces = try result.get()
          try takeNamespaces(namespaces, attachment, isFirst: present == nil)
          try record(.add(NVMeAttachment.call(parameters)))
          done(.success(namespaces.map { "\(name)n\($0.id)" }))
        } catch {
          attachment.remove(place)
          guard present == nil else {
            attachment.controller.disconnect(place)
            return done(.failure(error))
          }
          change { $0.nvme[name] = nil }
          for device in devices(of: attachment) { try? remove(device) }
          attachment.controller.end { done(.failure(error)) }
        }
      }
    }
  }

  /// Connects a path again that was given up. Its devices are there, with their users; a failure leaves it as it was.
  private func restart(
    _ attachment: NVMeAttachment, at place: NVMfTarget.ListenAddress, _ options: InitiatorController.Options,
    _ parameters: JSONValue, _ done: @escaping @Sendable (Result<[String], SoftDPUError>) -> Void
  ) {
    attachment.controller.restart(place, options) { [self] result in
      DispatchQueue.global().async { [self] in
        do throws(SoftDPUError) {
          let namespaces = try result.get()
          try takeNamespaces(namespaces, attachment, isFirst: false)
          attachment.add(place, parameters)
          try record(.update(NVMeAttachment.call(parameters)))
          done(.success(namespaces.map { "\(attachment.controller.name)n\($0.id)" }))
        } catch {
          done(.failure(error))
        }
      }
    }
  }

  private func devices(of attachment: NVMeAttachment) -> [NVMeDevice] {
    devices.compactMap { $0 as? NVMeDevice }.filter { $0.controller === attachment.controller }
  }

  /// Shows new namespaces, and new sizes of those that are there.
  private func takeNamespaces(
    _ namespaces: [InitiatorController.Namespace], _ attachment: NVMeAttachment, isFirst: Bool
  ) throws(SoftDPUError) {
    let known = devices(of: attachment)
    for namespace in namespaces {
      let size = namespace.blocks * UInt64(namespace.blockSize)
      if let device = known.first(where: { $0.namespace == namespace.id }) {
        if device.size != size, device.blockSize == namespace.blockSize { device.resize(size) }
      } else {
        try add(NVMeDevice(namespace, controller: attachment.controller))
      }
    }
    guard isFirst else { return }
    attachment.controller.watch { [weak self, weak attachment] namespaces in
      DispatchQueue.global().async { [weak self, weak attachment] in
        guard let self, let attachment else { return }
        do throws(SoftDPUError) {
          try takeNamespaces(namespaces, attachment, isFirst: false)
        } catch {
          logger.error("a remote namespace could not be shown", metadata: ["error": "\(error)"])
        }
      }
    }
  }

  /// Takes a remote subsystem, or one path to it, away. ENODEV where it is absent, EBUSY where a device is in use.
  func detach(
    _ name: String, at place: NVMfTarget.ListenAddress?,
    _ done: @escaping @Sendable (Result<Void, SoftDPUError>) -> Void
  ) {
    let operation = "detach \(name)"
    guard let attachment = nvmeAttachment(name), place.map(attachment.places.contains) ?? true else {
      return done(.failure(.system(ENODEV, operation)))
    }
    do throws(SoftDPUError) {
      if let place, attachment.places.count > 1 {
        let before = attachment.calls
        attachment.remove(place)
        let gone = Set(before.map(\.key)).subtracting(attachment.calls.map(\.key))
        try record(gone.sorted().map { .remove(key: $0) })
        attachment.controller.disconnect(place)
        return done(.success(()))
      }
      let devices = devices(of: attachment)
      if let busy = devices.first(where: { !$0.users.isEmpty }), let user = busy.users.first {
        throw SoftDPUError(
          code: .system(EBUSY), operation: operation, message: "\(user.description) uses \(busy.name)")
      }
      for device in devices { try remove(device) }
      change { $0.nvme[name] = nil }
      try record(attachment.calls.map { .remove(key: $0.key) })
    } catch {
      return done(.failure(error))
    }
    // The devices are kept until what they have under way is back.
    attachment.controller.end { done(.success(())) }
  }
}
