import CLinux
import Glibc
import Logging

extension VhostSession {
  private static let offeredProtocolFeatures =
    VhostUser.ProtocolFeature.multiqueue | VhostUser.ProtocolFeature.replyAck
    | VhostUser.ProtocolFeature.backendChannel | VhostUser.ProtocolFeature.config
    | VhostUser.ProtocolFeature.inflight | VhostUser.ProtocolFeature.memorySlots

  private var configuration: BlockConfiguration {
    // SAFETY: on the reactor's thread, which alone changes the target.
    let shape = unsafe device.target.pointee
    return unsafe BlockConfiguration(
      capacity: shape.capacity, blockSize: device.blockSize, physicalBlockSize: device.physicalBlockSize,
      isReadOnly: isReadOnly, canUnmap: shape.canUnmap, canWriteZeroes: shape.canWriteZeroes,
      queueCount: UInt16(VhostUser.maximumQueues))
  }

  /// Carries out one message. Nil where it waits for the requests in flight: `later` then gets the outcome.
  ///
  /// Descriptors that the message does not need are closed.
  func handle(
    _ request: VhostUser.Request, _ payload: [UInt8], _ descriptors: [CInt], later: @escaping (Outcome) -> Void
  ) -> Outcome? {
    switch request {
    case .setMemTable: return setMemoryTable(payload, descriptors, later)
    case .addMemReg: return addRegion(payload, descriptors)
    case .setVringKick, .setVringCall, .setVringErr: return setDescriptor(request, payload, descriptors)
    case .setBackendReqFD: return setBackendChannel(descriptors)
    case .setInflightFD: return setInflight(payload, descriptors)
    default: break
    }
    descriptors.forEach { _ = Glibc.close($0) }
    switch request {
    case .getFeatures: return .reply(ByteWriter.u64Bytes(configuration.features))
    case .setFeatures: return setFeatures(payload)
    case .getProtocolFeatures: return .reply(ByteWriter.u64Bytes(VhostSession.offeredProtocolFeatures))
    case .setProtocolFeatures:
      var reader = ByteReader(payload)
      guard let features = reader.u64() else { return .refused("a payload that is too short") }
      protocolFeatures = features & VhostSession.offeredProtocolFeatures
      return .done
    case .setOwner, .resetOwner: return .done
    case .getQueueNum: return .reply(ByteWriter.u64Bytes(UInt64(VhostUser.maximumQueues)))
    case .getMaxMemSlots: return unsafe .reply(ByteWriter.u64Bytes(UInt64(GuestMemory.maximumRegions)))
    case .removeMemReg: return removeRegion(payload, later)
    case .getConfig: return getConfig(payload)
    case .setConfig: return .refused("the configuration space is read-only")
    case .getInflightFD: return getInflight(payload)
    case .setVringNum, .setVringBase, .setVringEnable: return setQueue(request, payload)
    case .setVringAddr: return setAddresses(payload)
    case .getVringBase: return stopQueue(payload, later)
    default: return .refused("the message is not expected here")
    }
  }

  private func queue(_ index: Int) -> QueueControl {
    if let queue = queues[index] { return queue }
    let queue = unsafe QueueControl(
      session: state, controller: name, index: index, ledger: reactor.ledger)
    queues[index] = queue
    return queue
  }

  private func setFeatures(_ payload: [UInt8]) -> Outcome {
    var reader = ByteReader(payload)
    guard let features = reader.u64() else { return .refused("a payload that is too short") }
    guard features & ~configuration.features == 0 else { return .refused("features that were not offered") }
    self.features = features
    // Without FLUSH the driver counts a write as durable when it is done.
    unsafe state.pointee.isWriteThrough = features & 1 << UInt64(VIRTIO_BLK_F_FLUSH) == 0
    return .done
  }

  // MARK: Memory

  private func setMemoryTable(
    _ payload: [UInt8], _ descriptors: [CInt], _ later: @escaping (Outcome) -> Void
  ) -> Outcome? {
    guard let regions = VhostUserPayload.memoryTable(payload), regions.count == descriptors.count else {
      descriptors.forEach { _ = Glibc.close($0) }
      return .refused("a memory table that is not sound")
    }
    heldFDs = descriptors
    freeze { [unowned self] in
      unsafe state.pointee.memory.removeAll()
      var outcome = Outcome.done
      do throws(SoftDPUError) {
        for (region, descriptor) in zip(regions, descriptors) {
          unsafe try state.pointee.memory.add(region, fd: descriptor)
        }
      } catch {
        outcome = .refused(error.message)
      }
      heldFDs.forEach { _ = Glibc.close($0) }
      heldFDs = []
      relocateQueues()
      later(outcome)
    }
    return nil
  }

  private func addRegion(_ payload: [UInt8], _ descriptors: [CInt]) -> Outcome {
    defer { descriptors.forEach { _ = Glibc.close($0) } }
    guard let region = VhostUserPayload.singleRegion(payload), let descriptor = descriptors.first else {
      return .refused("a region that is not sound")
    }
    do throws(SoftDPUError) {
      unsafe try state.pointee.memory.add(region, fd: descriptor)
    } catch {
      return .refused(error.message)
    }
    // Rings of running queues may have come back with it.
    relocateQueues()
    for case let queue? in queues { unsafe core.pointee.touch(queue.state) }
    return .done
  }

  private func removeRegion(_ payload: [UInt8], _ later: @escaping (Outcome) -> Void) -> Outcome? {
    guard let region = VhostUserPayload.singleRegion(payload) else { return .refused("a region that is not sound") }
    freeze { [unowned self] in
      let isKnown = unsafe state.pointee.memory.remove(
        guestStart: region.guestStart, length: region.length, userStart: region.userStart)
      relocateQueues()
      later(isKnown ? .done : .refused("no such region"))
    }
    return nil
  }

  /// Finds the rings of running queues again after the memory changed. A queue whose rings are in none of the regions
  /// is not served until a later change brings them: firmware moves its memory about while its queues exist.
  private func relocateQueues() {
    for case let queue? in queues where unsafe queue.state.pointee.isStarted {
      if unsafe !queue.locate(state.pointee.memory) {
        unsafe logger.debug("a queue's rings left the memory", metadata: ["queue": "\(queue.state.pointee.index)"])
      }
    }
  }

  // MARK: Queues

  private func setQueue(_ request: VhostUser.Request, _ payload: [UInt8]) -> Outcome {
    guard let (index, number) = VhostUserPayload.state(payload) else { return .refused("no such queue") }
    let queue = queue(index)
    if request == .setVringEnable {
      unsafe queue.state.pointee.isEnabled = number != 0
      unsafe core.pointee.touch(queue.state)
      return .done
    }
    guard unsafe !queue.state.pointee.isStarted else { return .refused("the queue is running") }
    if request == .setVringNum {
      guard number > 0, unsafe number <= UInt32(VirtQueue.maximumSize), number & (number - 1) == 0 else {
        return .refused(unsafe "a queue has 1 to \(VirtQueue.maximumSize) entries, a power of two")
      }
      queue.size = UInt16(number)
    } else {
      queue.base = UInt16(truncatingIfNeeded: number)
    }
    return .done
  }

  private func setAddresses(_ payload: [UInt8]) -> Outcome {
    guard let addresses = VhostUserPayload.addresses(payload) else { return .refused("no such queue") }
    let queue = queue(addresses.index)
    // Repeated for a running queue when logging is switched, with the same addresses.
    guard unsafe !queue.state.pointee.isStarted || queue.addresses == addresses else {
      return .refused("the queue is running")
    }
    queue.addresses = addresses
    return .done
  }

  private func setDescriptor(_ request: VhostUser.Request, _ payload: [UInt8], _ descriptors: [CInt]) -> Outcome {
    guard let (index, hasDescriptor) = VhostUserPayload.descriptorIndex(payload),
      descriptors.count == (hasDescriptor ? 1 : 0)
    else {
      descriptors.forEach { _ = Glibc.close($0) }
      return .refused("no such queue, or not one descriptor")
    }
    let queue = queue(index)
    let fd = descriptors.first ?? -1
    guard fd < 0 || isEventFD(fd) else {
      _ = Glibc.close(fd)
      return .refused("a bell has to be an eventfd")
    }
    // A bell that takes nothing more must not hold a request in the kernel.
    if fd >= 0, request != .setVringKick { _ = fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK) }
    switch request {
    case .setVringCall:
      unsafe queue.replace(\.callFD, with: fd, ring)
      // Requests that were taken up again may be done already, with nobody to tell: one ring too many does no harm.
      var one: UInt64 = 1
      if fd >= 0 { _ = unsafe write(fd, &one, 8) }
      return .done
    case .setVringErr:
      unsafe queue.replace(\.errorFD, with: fd, ring)
      return .done
    default:
      guard fd >= 0 else { return .refused("a queue without a bell would have to be polled") }
      queue.kickWatch?.cancel(ring)
      unsafe queue.replace(\.kickFD, with: fd, ring)
      let watch = unsafe Watch(fd: fd, queue: queue.state)
      queue.kickWatch = watch
      if unsafe !queue.state.pointee.isStarted, let refusal = startQueue(queue) { return refusal }
      unsafe watch.arm(core)
      return .done
    }
  }

  /// Anything else could be readable for ever, and would keep the reactor busy.
  private func isEventFD(_ fd: CInt) -> Bool {
    var buffer = [CChar](repeating: 0, count: 64)
    let count = unsafe readlink("/proc/self/fd/\(fd)", &buffer, buffer.count)
    return count > 0 && buffer.prefix(count).map { UInt8(bitPattern: $0) } == Array("anon_inode:[eventfd]".utf8)
  }

  private func startQueue(_ queue: QueueControl) -> Outcome? {
    guard unsafe queue.locate(state.pointee.memory) else {
      return .refused("a queue whose rings are not in its memory")
    }
    let index = unsafe queue.state.pointee.index
    let resumed = unsafe queue.start(
      hasEventIndex: features & 1 << UInt64(VIRTIO_RING_F_EVENT_IDX) != 0,
      tracking: inflight?.queue(index, ringSize: queue.size), core: core)
    logger.debug("queue started", metadata: ["queue": "\(index)", "size": "\(queue.size)", "resumed": "\(resumed)"])
    return nil
  }

  private func stopQueue(_ payload: [UInt8], _ later: @escaping (Outcome) -> Void) -> Outcome? {
    guard let (index, _) = VhostUserPayload.state(payload) else { return .refused("no such queue") }
    let queue = queue(index)
    freeze { [unowned self] in
      if unsafe queue.state.pointee.isStarted { queue.stop(ring) }
      var writer = ByteWriter()
      writer.u32(UInt32(index))
      writer.u32(UInt32(queue.base))
      later(.reply(writer.bytes))
    }
    return nil
  }

  // MARK: Configuration, channels, records

  private func getConfig(_ payload: [UInt8]) -> Outcome {
    guard let request = VhostUserPayload.config(payload) else {
      // An empty payload says that it failed.
      return .reply([])
    }
    var writer = ByteWriter()
    writer.u32(request.offset)
    writer.u32(request.length)
    writer.u32(request.flags)
    writer.append(Array(configuration.bytes[Int(request.offset)..<Int(request.offset + request.length)]))
    return .reply(writer.bytes)
  }

  private func setBackendChannel(_ descriptors: [CInt]) -> Outcome {
    guard let fd = descriptors.first, descriptors.count == 1 else {
      descriptors.forEach { _ = Glibc.close($0) }
      return .refused("a channel is one descriptor")
    }
    // What the front end does not read must not stop this thread.
    _ = fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK)
    if backendFD >= 0 { _ = Glibc.close(backendFD) }
    backendFD = fd
    return .done
  }

  private func getInflight(_ payload: [UInt8]) -> Outcome {
    guard let request = VhostUserPayload.inflight(payload) else { return .refused("bad numbers of queues") }
    do throws(SoftDPUError) {
      let (fd, length) = try InflightRegion.create(queues: request.queues, queueSize: request.queueSize)
      // The message holds a copy of the descriptor once it is sent.
      reactor.post { _ = Glibc.close(fd) }
      var writer = ByteWriter()
      writer.u64(UInt64(length))
      writer.u64(0)
      writer.u16(UInt16(request.queues))
      writer.u16(request.queueSize)
      writer.u32(0)  // QEMU's structure ends on a multiple of eight, and it insists on that length.
      return .reply(writer.bytes, descriptor: fd)
    } catch {
      return .refused(error.message)
    }
  }

  private func setInflight(_ payload: [UInt8], _ descriptors: [CInt]) -> Outcome {
    defer { descriptors.forEach { _ = Glibc.close($0) } }
    guard let description = VhostUserPayload.inflight(payload), let fd = descriptors.first else {
      return .refused("a record that is not sound")
    }
    guard !queues.contains(where: { unsafe $0?.state.pointee.isStarted == true }) else {
      return .refused("a record for queues that run already")
    }
    do throws(SoftDPUError) {
      inflight = try InflightRegion(description, fd: fd)
    } catch {
      return .refused(error.message)
    }
    return .done
  }
}
