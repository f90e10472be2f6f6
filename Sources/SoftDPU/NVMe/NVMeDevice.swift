import Glibc
import JSON

/// A namespace of a remote subsystem as a block device (SPDK's bdev_nvme).
///
/// SAFETY: the layer's state is freed with the device, which its users keep.
@safe
final class NVMeDevice: BlockDevice, @unchecked Sendable {
  @unsafe
  struct Layer {
    let controller: Unmanaged<InitiatorController>
    let namespace: UInt32
    let tally: Int
  }

  let controller: InitiatorController
  let namespace: UInt32
  /// Where the controller's paths count this namespace's requests.
  let tally: Int
  private let layer: UnsafeMutablePointer<Layer>

  init(_ namespace: InitiatorController.Namespace, controller: InitiatorController) {
    self.controller = controller
    self.namespace = namespace.id
    tally = namespace.tally
    unsafe layer = UnsafeMutablePointer<Layer>.allocate(capacity: 1)
    unsafe layer.initialize(
      to: Layer(controller: Unmanaged.passUnretained(controller), namespace: namespace.id, tally: namespace.tally))
    let size = namespace.blocks * UInt64(namespace.blockSize)
    let name = "\(controller.name)n\(namespace.id)"
    let target = unsafe BlockTarget.make(
      .layer, name: name, reactor: controller.reactor.number, capacity: size, blockSize: namespace.blockSize,
      isReadOnly: namespace.isReadOnly, canUnmap: !namespace.isReadOnly, canWriteZeroes: !namespace.isReadOnly)
    unsafe target.pointee.layer = UnsafeMutableRawPointer(layer)
    unsafe target.pointee.submit = { io, core in
      let io = unsafe io.assumingMemoryBound(to: BlockIO.self)
      let core = unsafe core.assumingMemoryBound(to: ReactorCore.self)
      guard let raw = unsafe io.pointee.target.pointee.layer else { return unsafe finish(io, -ENXIO, core) }
      let layer = unsafe raw.assumingMemoryBound(to: Layer.self)
      unsafe layer.pointee.controller._withUnsafeGuaranteedRef { unsafe $0.submit(io, core) }
    }
    unsafe super.init(
      name: name, uuid: namespace.uuid, productName: "NVMe disk", blockSize: namespace.blockSize,
      physicalBlockSize: namespace.blockSize, size: size, reactor: controller.reactor, target: target)
  }

  deinit { unsafe layer.deallocate() }

  override var specifics: JSONValue {
    [
      "nvme": .array(
        controller.reports.map { report in
          [
            "trid": controller.identifier(report.place),
            "ns_data": ["id": .integer(Int64(namespace)), "can_share": true],
            "ctrlr_data": ["cntlid": .integer(Int64(report.controllerID))],
          ]
        }),
      "mp_policy": controller.isFailover ? "active_passive" : "active_active",
    ]
  }
}

extension InitiatorController {
  /// What SPDK calls a transport identifier.
  func identifier(_ place: NVMfTarget.ListenAddress) -> JSONValue {
    var value = place.json
    value["subnqn"] = .string(subsystemNQN)
    return value
  }
}
