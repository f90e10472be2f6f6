import CLinux
import Glibc
import Logging

// Admin and fabrics commands: rare, and carried out as values rather than on the hot path.
//
// SAFETY, for every `unsafe` here: a slot belongs to this connection and is open; what the host sent is copied out of
// its buffer up to the length that was received.

extension NVMfConnection {
  /// What a command is answered with.
  private enum Answer {
    case status(UInt16)
    case value(UInt32, UInt32)
    case data([UInt8])
    /// Later.
    case none

    static func refused(_ status: UInt16) -> Answer { .status(status | NVMe.Status.doNotRetry) }
  }

  /// Carries out an admin or fabrics command.
  func administer(_ slot: UnsafeMutablePointer<NVMfSlot>) {
    controller?.seen()
    let answer: Answer
    if unsafe slot.pointee.opcode == NVMe.Admin.fabrics {
      answer = unsafe fabrics(slot)
    } else if let controller, controller.admin === self {
      answer = unsafe controller.isReady ? admin(slot, controller) : .refused(NVMe.Status.sequenceError)
    } else {
      answer = .refused(NVMe.Status.sequenceError)
    }
    switch answer {
    case .none: break
    case .status(let status): unsafe complete(slot, status, core)
    case .value(let word0, let word1):
      unsafe complete(slot, NVMe.Status.success, word0: word0, word1: word1, core)
    case .data(let bytes): unsafe answerData(slot, bytes)
    }
  }

  /// Sends as much of the data as the host has room for.
  private func answerData(_ slot: UnsafeMutablePointer<NVMfSlot>, _ bytes: [UInt8]) {
    let room = unsafe Int(slot.pointee.field32(32))
    let length = min(room, bytes.count)
    guard length > 0 else { return unsafe complete(slot, NVMe.Status.success, core) }
    // To be tried again: the host has as many such answers under way as it may.
    guard unsafe reserve(slot, length, core), let buffer = unsafe slot.pointee.buffer else {
      return unsafe complete(slot, NVMe.Status.internalError, core)
    }
    unsafe bytes.withUnsafeBytes { source in
      if let base = source.baseAddress { unsafe buffer.copyMemory(from: base, byteCount: length) }
    }
    unsafe sendData(slot, length, isSuccess: false, core)
  }

  private func received(_ slot: UnsafeMutablePointer<NVMfSlot>) -> [UInt8] {
    guard let buffer = unsafe slot.pointee.buffer else { return [] }
    return unsafe Array(UnsafeRawBufferPointer(start: buffer, count: slot.pointee.received))
  }

  // MARK: Fabrics

  private func fabrics(_ slot: UnsafeMutablePointer<NVMfSlot>) -> Answer {
    switch unsafe slot.pointee.field8(4) {
    case NVMe.Fabrics.connect: return unsafe connect(slot)
    case NVMe.Fabrics.propertyGet: return unsafe getProperty(slot)
    case NVMe.Fabrics.propertySet: return unsafe setProperty(slot)
    default: return .refused(NVMe.Status.invalidOpcode)
    }
  }

  private static func name(_ bytes: ArraySlice<UInt8>) -> String? {
    let content = bytes.prefix { $0 != 0 }
    guard !content.isEmpty, content.count <= 223, let text = String(validating: content, as: UTF8.self),
      text.hasPrefix("nqn.")
    else { return nil }
    return text
  }

  /// Where the host's mistake is: at this offset of the command, or of its data. It may try again: what it asks for may
  /// be there in a moment, when this process has just started.
  private func invalidParameter(_ slot: UnsafeMutablePointer<NVMfSlot>, offset: UInt32, inData: Bool) -> Answer {
    unsafe complete(slot, NVMe.Status.invalidParameters, word0: offset | (inData ? 1 << 16 : 0), core)
    return .none
  }

  private func connect(_ slot: UnsafeMutablePointer<NVMfSlot>) -> Answer {
    guard queueID == nil else { return .refused(NVMe.Status.sequenceError) }
    guard unsafe slot.pointee.field16(40) == 0 else { return .refused(NVMe.Status.incompatibleFormat) }
    let data = unsafe received(slot)
    guard data.count == 1024 else { return .refused(NVMe.Status.invalidSGLLength) }
    let queue = unsafe slot.pointee.field16(42)
    let size = unsafe UInt32(slot.pointee.field16(44)) + 1
    guard size >= 2, size <= (queue == 0 ? 128 : UInt32(transport.queueDepth)) else {
      return unsafe invalidParameter(slot, offset: 44, inData: false)
    }
    guard let subsystemNQN = NVMfConnection.name(data[256..<512]) else {
      return unsafe invalidParameter(slot, offset: 256, inData: true)
    }
    guard let hostNQN = NVMfConnection.name(data[512..<768]) else {
      return unsafe invalidParameter(slot, offset: 512, inData: true)
    }
    let hostID = Array(data[0..<16])
    let controllerID = UInt16(data[16]) | UInt16(data[17]) << 8
    logger[metadataKey: "host"] = "\(hostNQN)"
    if queue == 0 {
      return unsafe connectAdmin(slot, subsystemNQN, hostNQN, hostID, controllerID, UInt16(clamping: size))
    }
    guard let controller = target.controller(controllerID, of: subsystemNQN),
      controller.hostNQN == hostNQN, controller.hostID == hostID, controller.isReady, let table = controller.table
    else { return unsafe invalidParameter(slot, offset: 16, inData: true) }
    guard Int(queue) <= transport.maximumQueues, controller.add(self, queue) else {
      return unsafe invalidParameter(slot, offset: 42, inData: false)
    }
    self.controller = controller
    guard open(table, queue: queue, queueSize: UInt16(clamping: size)) else {
      controller.remove(self)
      self.controller = nil
      // It may try again: memory comes back.
      return .status(NVMe.Status.internalError)
    }
    queueID = queue
    target.record { $0.ioQueues &+= 1 }
    return .value(UInt32(controller.id), 0)
  }

  private func connectAdmin(
    _ slot: UnsafeMutablePointer<NVMfSlot>, _ subsystemNQN: String, _ hostNQN: String, _ hostID: [UInt8],
    _ controllerID: UInt16, _ size: UInt16
  ) -> Answer {
    var table: NamespaceTable?
    var range = NVMfControllers.allIDs
    if subsystemNQN != NVMe.discoveryNQN {
      guard let subsystem = target.subsystem(subsystemNQN), subsystem.listeners.contains(place) else {
        return unsafe invalidParameter(slot, offset: 256, inData: true)
      }
      guard subsystem.allows(hostNQN) else {
        logger.warning("a host that is not allowed", metadata: ["subsystem": "\(subsystemNQN)"])
        return .refused(NVMe.Status.invalidHost)
      }
      table = subsystem.table
      range = subsystem.controllerIDs
    }
    guard controllerID == 0xFFFF else { return unsafe invalidParameter(slot, offset: 16, inData: true) }
    guard let id = target.freeControllerID(of: subsystemNQN, in: range) else {
      return .status(NVMe.Status.controllerBusy)
    }
    let controller = unsafe NVMfController(
      id: id, subsystemNQN: subsystemNQN, hostNQN: hostNQN, hostID: hostID, table: table, admin: self,
      keepAlive: slot.pointee.field32(48), reactor: target.reactor)
    target.keep(controller)
    target.record { $0.adminQueues &+= 1 }
    self.controller = controller
    queueID = 0
    unsafe state?.pointee.queueSize = size
    logger.info("host connected", metadata: ["subsystem": "\(subsystemNQN)", "controller": "\(id)"])
    return .value(UInt32(id), 0)
  }

  private func getProperty(_ slot: UnsafeMutablePointer<NVMfSlot>) -> Answer {
    guard let controller, controller.admin === self else { return .refused(NVMe.Status.sequenceError) }
    let isWide = unsafe slot.pointee.field8(40) & 7 == 1
    switch (unsafe slot.pointee.field32(44), isWide) {
    case (NVMe.Property.capabilities, true):
      // Entries less one, contiguous queues, 15 s to become ready, the NVM command set.
      return .value(UInt32(transport.queueDepth - 1) | 1 << 16 | 30 << 24, 1 << 5)
    case (NVMe.Property.version, false): return .value(NVMe.version, 0)
    case (NVMe.Property.configuration, false): return .value(controller.configuration, 0)
    case (NVMe.Property.status, false): return .value(controller.status, 0)
    default: return .refused(NVMe.Status.invalidField)
    }
  }

  private func setProperty(_ slot: UnsafeMutablePointer<NVMfSlot>) -> Answer {
    guard let controller, controller.admin === self else { return .refused(NVMe.Status.sequenceError) }
    guard unsafe slot.pointee.field8(40) & 7 == 0, unsafe slot.pointee.field32(44) == NVMe.Property.configuration
    else { return .refused(NVMe.Status.invalidField) }
    controller.configure(unsafe slot.pointee.field32(48))
    return .status(NVMe.Status.success)
  }

  // MARK: Admin

  private func admin(_ slot: UnsafeMutablePointer<NVMfSlot>, _ controller: NVMfController) -> Answer {
    switch unsafe slot.pointee.opcode {
    case NVMe.Admin.identify: return unsafe identify(slot, controller)
    case NVMe.Admin.getLogPage: return unsafe getLogPage(slot, controller)
    case NVMe.Admin.keepAlive: return .status(NVMe.Status.success)
    case NVMe.Admin.asyncEventRequest:
      return unsafe controller.keep(slot) ? .none : .refused(NVMe.Status.asyncEventLimit)
    case NVMe.Admin.abort:
      let word = unsafe slot.pointee.word(10)
      let isAborted = word & 0xFFFF == 0 && controller.abort(UInt16(word >> 16))
      // Bit 0: not aborted. A command that a device has is on its way to its end.
      return .value(isAborted ? 0 : 1, 0)
    case NVMe.Admin.setFeatures: return unsafe setFeature(slot, controller)
    case NVMe.Admin.getFeatures: return unsafe getFeature(slot, controller)
    default: return .refused(NVMe.Status.invalidOpcode)
    }
  }

  private func identify(_ slot: UnsafeMutablePointer<NVMfSlot>, _ controller: NVMfController) -> Answer {
    let selector = unsafe slot.pointee.word(10) & 0xFF
    if selector == 1 { return .data(IdentifyData.page(describe(controller))) }
    guard let subsystem = target.subsystem(controller.subsystemNQN) else {
      return .refused(NVMe.Status.invalidField)
    }
    let id = unsafe slot.pointee.namespace
    switch selector {
    case 2:
      guard id < 0xFFFF_FFFE else { return .refused(NVMe.Status.invalidNamespace) }
      return .data(IdentifyData.list(Array(subsystem.namespaces.keys), above: id))
    case 0, 3:
      guard id > 0, id <= subsystem.maximumNamespaces else { return .refused(NVMe.Status.invalidNamespace) }
      guard let namespace = subsystem.namespaces[id] else {
        // A number that is free: zeros.
        return selector == 0
          ? .data([UInt8](repeating: 0, count: 4096)) : .refused(NVMe.Status.invalidNamespace)
      }
      let described = NVMfConnection.describe(namespace)
      return .data(selector == 0 ? IdentifyData.page(described) : IdentifyData.descriptors(described))
    default: return .refused(NVMe.Status.invalidField)
    }
  }

  private func describe(_ controller: NVMfController) -> IdentifyData.Controller {
    let subsystem = target.subsystem(controller.subsystemNQN)
    return IdentifyData.Controller(
      subsystemNQN: controller.subsystemNQN, serialNumber: subsystem?.serialNumber ?? "00000000000000000000",
      modelNumber: subsystem?.modelNumber ?? "YCloud discovery", controllerID: controller.id,
      isDiscovery: controller.isDiscovery, maximumNamespaces: subsystem?.maximumNamespaces ?? 0,
      maximumTransfer: transport.maximumTransfer, inCapsuleLength: transport.inCapsuleLength,
      queueDepth: transport.queueDepth)
  }

  private static func describe(_ namespace: NVMfTarget.Namespace) -> IdentifyData.Namespace {
    let device = namespace.device
    let shape = unsafe device.target.pointee
    return unsafe IdentifyData.Namespace(
      blocks: device.size / UInt64(device.blockSize), blockSize: device.blockSize,
      physicalBlockSize: device.physicalBlockSize, isReadOnly: shape.isReadOnly, canUnmap: shape.canUnmap,
      nguid: namespace.nguid, eui64: namespace.eui64, uuid: UniqueID.bytes(namespace.uuid) ?? [])
  }

  private func getLogPage(_ slot: UnsafeMutablePointer<NVMfSlot>, _ controller: NVMfController) -> Answer {
    let word10 = unsafe slot.pointee.word(10)
    let length = (UInt64(word10 >> 16) | UInt64(unsafe slot.pointee.word(11) & 0xFFFF) << 16) * 4 + 4
    let offset = unsafe UInt64(slot.pointee.word(12)) | UInt64(slot.pointee.word(13)) << 32
    guard length <= UInt64(transport.maximumTransfer), offset % 4 == 0 else {
      return .refused(NVMe.Status.invalidField)
    }
    let keeping = word10 & 1 << 15 != 0
    let page: [UInt8]
    switch UInt8(truncatingIfNeeded: word10) {
    case NVMe.LogPage.discovery where controller.isDiscovery:
      page = IdentifyData.discoveryLog(
        target.discoveryEntries(for: controller.hostNQN, at: place), generation: target.generation)
    case NVMe.LogPage.changedNamespaces where !controller.isDiscovery:
      page = controller.takeChanges(keeping: keeping)
    case NVMe.LogPage.errors, NVMe.LogPage.firmware: page = [UInt8](repeating: 0, count: 512)
    case NVMe.LogPage.health:
      var health = LittleEndianPage(512)
      health.set(UInt16(300), at: 1)  // kelvin; there is nothing to measure
      health.set(UInt8(100), at: 3)
      health.set(UInt8(10), at: 4)
      page = health.bytes
    case NVMe.LogPage.commandEffects:
      var effects = LittleEndianPage(4096)
      for opcode in [0x02, 0x06, 0x08, 0x09, 0x0A, 0x0C, 0x18] { effects.set(UInt32(1), at: 4 * opcode) }
      for opcode in [0x00, 0x02, 0x05] { effects.set(UInt32(1), at: 1024 + 4 * opcode) }
      for opcode in [0x01, 0x08, 0x09] { effects.set(UInt32(0b11), at: 1024 + 4 * opcode) }
      page = effects.bytes
    default: return .refused(NVMe.Status.invalidLogPage)
    }
    // What lies behind a page's end reads as zeros.
    let start = Int(clamping: min(offset, UInt64(page.count)))
    let part = page[start...].prefix(Int(length))
    return .data(Array(part) + [UInt8](repeating: 0, count: Int(length) - part.count))
  }

  private func setFeature(_ slot: UnsafeMutablePointer<NVMfSlot>, _ controller: NVMfController) -> Answer {
    let value = unsafe slot.pointee.word(11)
    switch UInt8(truncatingIfNeeded: unsafe slot.pointee.word(10)) {
    case NVMe.Feature.numberOfQueues:
      let most = UInt32(transport.maximumQueues - 1)
      guard value & 0xFFFF != 0xFFFF, value >> 16 != 0xFFFF else { return .refused(NVMe.Status.invalidField) }
      return .value(min(value & 0xFFFF, most) | min(value >> 16, most) << 16, 0)
    case NVMe.Feature.keepAliveTimer:
      controller.keepAlive = value
      controller.seen()
      controller.watchKeepAlive()
      return .status(NVMe.Status.success)
    case NVMe.Feature.asyncEventConfiguration:
      controller.configureEvents(value)
      return .status(NVMe.Status.success)
    case NVMe.Feature.arbitration, NVMe.Feature.powerManagement, NVMe.Feature.temperatureThreshold,
      NVMe.Feature.errorRecovery, NVMe.Feature.writeAtomicity:
      return .status(NVMe.Status.success)
    case NVMe.Feature.volatileWriteCache:
      return value & 1 != 0 ? .status(NVMe.Status.success) : .refused(NVMe.Status.featureNotChangeable)
    default: return .refused(NVMe.Status.invalidField)
    }
  }

  private func getFeature(_ slot: UnsafeMutablePointer<NVMfSlot>, _ controller: NVMfController) -> Answer {
    switch UInt8(truncatingIfNeeded: unsafe slot.pointee.word(10)) {
    case NVMe.Feature.numberOfQueues:
      let most = UInt32(transport.maximumQueues - 1)
      return .value(most | most << 16, 0)
    case NVMe.Feature.keepAliveTimer: return .value(controller.keepAlive, 0)
    case NVMe.Feature.asyncEventConfiguration: return .value(controller.eventConfiguration, 0)
    case NVMe.Feature.volatileWriteCache: return .value(1, 0)
    case NVMe.Feature.arbitration, NVMe.Feature.powerManagement, NVMe.Feature.temperatureThreshold,
      NVMe.Feature.errorRecovery, NVMe.Feature.writeAtomicity:
      return .value(0, 0)
    case NVMe.Feature.hostIdentifier: return .data(controller.hostID)
    default: return .refused(NVMe.Status.invalidField)
    }
  }
}
