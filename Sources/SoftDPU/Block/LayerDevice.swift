import Glibc
import JSON

/// A device that changes, holds back or fails the requests of the device below it, which it has for itself.
@safe
class LayerDevice: BlockDevice, @unchecked Sendable {
  private let below: BlockDevice

  /// Takes the device below for itself; EPERM where somebody uses that.
  init(
    name: String, uuid: String, productName: String, below: BlockDevice, isReadOnly: Bool? = nil,
    submit: @escaping @convention(c) (UnsafeMutableRawPointer, UnsafeMutableRawPointer) -> Void,
    layer: UnsafeMutableRawPointer
  ) throws(SoftDPUError) {
    self.below = below
    let shape = unsafe below.target.pointee
    let target = unsafe BlockTarget.make(
      .layer, name: name, reactor: below.reactor.number, capacity: below.size, blockSize: below.blockSize,
      isReadOnly: isReadOnly ?? shape.isReadOnly, canUnmap: shape.canUnmap, canWriteZeroes: shape.canWriteZeroes)
    unsafe target.pointee.submit = unsafe submit
    unsafe target.pointee.layer = unsafe layer
    unsafe super.init(
      name: name, uuid: uuid, productName: productName, blockSize: below.blockSize,
      physicalBlockSize: below.physicalBlockSize, size: below.size, reactor: below.reactor, target: target)
    try below.open(
      self,
      User(description: "bdev \(name)", isExclusive: true, onResize: { [weak self] in self?.resize($0) }))
  }

  override var base: BlockDevice? { below }

  /// Lets go of the device below, when nothing uses this one any more.
  func release() { below.close(self) }
}
