import CLinux
import Glibc
import JSON
import Synchronization

/// A key for encrypted devices. It goes in, and never out again: not to clients, not into a log.
struct CryptoKey: Sendable, Hashable {
  let name: String
  /// The data key and the tweak key, one behind the other: 32 bytes for AES-128, 64 for AES-256.
  private let bytes: [UInt8]

  /// Nil where the two are not of one length that AES has, or are the same.
  init?(name: String, key: [UInt8], tweak: [UInt8]) {
    guard [16, 32].contains(key.count), tweak.count == key.count, key != tweak else { return nil }
    self.name = name
    bytes = key + tweak
  }

  /// A cipher of its own for one device; nil where OpenSSL refuses.
  func makeCipher() -> OpaquePointer? {
    // SAFETY: the bytes go with their length, and are copied by the call.
    unsafe bytes.withUnsafeBufferPointer { unsafe clinux_xts_new($0.baseAddress, $0.count) }
  }

  /// What is kept in the file of keys, which only its owner reads.
  var stored: JSONValue { ["name": .string(name), "bytes": .string(UniqueID.text(bytes))] }

  init?(stored value: JSONValue) {
    guard let name = value["name"]?.stringValue,
      let bytes = value["bytes"]?.stringValue.flatMap(UniqueID.hexadecimal), [32, 64].contains(bytes.count)
    else { return nil }
    self.init(
      name: name, key: Array(bytes.prefix(bytes.count / 2)), tweak: Array(bytes.suffix(bytes.count / 2)))
  }
}

/// A device whose blocks are encrypted below (SPDK's bdev_crypto): AES-XTS, the block's number as the tweak.
///
/// SAFETY: the cipher is used on the reactor's thread only, and freed with the device, which its users keep.
@safe
final class CryptoDevice: LayerDevice, @unchecked Sendable {
  /// Reactor's thread.
  @unsafe
  struct Layer {
    let base: UnsafeMutablePointer<BlockTarget>
    let cipher: OpaquePointer
  }

  let keyName: String
  private let layer: UnsafeMutablePointer<Layer>

  /// EINVAL where OpenSSL refuses the key.
  init(name: String, uuid: String, below: BlockDevice, key: CryptoKey) throws(SoftDPUError) {
    guard let cipher = unsafe key.makeCipher() else { throw .system(EINVAL, "create bdev \(name)") }
    keyName = key.name
    unsafe layer = UnsafeMutablePointer<Layer>.allocate(capacity: 1)
    unsafe layer.initialize(to: Layer(base: below.target, cipher: cipher))
    try unsafe super.init(
      name: name, uuid: uuid, productName: "crypto", below: below,
      submit: { io, core in
        unsafe CryptoDevice.take(
          io.assumingMemoryBound(to: BlockIO.self), core.assumingMemoryBound(to: ReactorCore.self))
      }, layer: UnsafeMutableRawPointer(layer))
    // Blocks that were given back would not read as zeros, but as what their decryption makes of zeros.
    unsafe target.pointee.canUnmap = false
    unsafe target.pointee.canWriteZeroes = false
  }

  deinit {
    unsafe clinux_xts_free(layer.pointee.cipher)
    unsafe layer.deallocate()
  }

  // SAFETY: below, a request's bytes are in memory of the reactor's pool, a page for the vector and a piece of the
  // request; it is given back when the device below has answered for the last piece.

  private static func take(_ io: UnsafeMutablePointer<BlockIO>, _ core: UnsafeMutablePointer<ReactorCore>) {
    let target = unsafe io.pointee.target
    guard let raw = unsafe target.pointee.layer else { return unsafe finish(io, -ENXIO, core) }
    let layer = unsafe raw.assumingMemoryBound(to: Layer.self)
    guard unsafe io.pointee.kind == .read || io.pointee.kind == .write else {
      if unsafe io.pointee.kind != .flush { return unsafe finish(io, -EOPNOTSUPP, core) }
      if unsafe !descend(io, to: layer.pointee.base, done: passed, core) { unsafe finish(io, -ENOMEM, core) }
      return
    }
    let length = unsafe DeviceMemory.length(of: io)
    guard let memory = unsafe DeviceMemory.take(io, length, target, core) else { return }
    unsafe begin(io, memory, length, core)
  }

  /// Goes on with a request that has memory.
  private static func begin(
    _ io: UnsafeMutablePointer<BlockIO>, _ memory: UnsafeMutableRawPointer, _ length: Int,
    _ core: UnsafeMutablePointer<ReactorCore>
  ) {
    guard let frame = unsafe push(io, core) else {
      let target = unsafe io.pointee.target
      unsafe finish(io, -ENOMEM, core)
      return unsafe give(memory, length, target, core)
    }
    unsafe frame.pointee.buffer = unsafe memory
    unsafe startPiece(io, frame, core)
  }

  private static func give(
    _ memory: UnsafeMutableRawPointer, _ length: Int, _ target: UnsafeMutablePointer<BlockTarget>,
    _ core: UnsafeMutablePointer<ReactorCore>
  ) {
    unsafe DeviceMemory.give(memory, length, target, core) { unsafe begin($0, $1, $2, core) }
  }

  /// How long the present piece is. The frame's note counts what is done.
  private static func pieceLength(_ frame: UnsafeMutablePointer<BlockFrame>) -> Int {
    unsafe min(Int(frame.pointee.length - frame.pointee.note), DeviceMemory.pieceLength)
  }

  /// Has the device below move the next piece.
  private static func startPiece(
    _ io: UnsafeMutablePointer<BlockIO>, _ frame: UnsafeMutablePointer<BlockFrame>,
    _ core: UnsafeMutablePointer<ReactorCore>
  ) {
    guard let memory = unsafe frame.pointee.buffer, let raw = unsafe frame.pointee.target.pointee.layer else { return }
    let layer = unsafe raw.assumingMemoryBound(to: Layer.self)
    let length = unsafe pieceLength(frame)
    let offset = unsafe frame.pointee.offset + frame.pointee.note
    let bytes = unsafe memory + DeviceMemory.head
    unsafe io.pointee.done = unsafe moved
    unsafe io.pointee.target = unsafe layer.pointee.base
    if unsafe io.pointee.kind == .write {
      unsafe movePieces(
        frame.pointee.vectors, frame.pointee.first..<frame.pointee.end, at: Int(frame.pointee.note), bytes, length,
        intoPieces: false)
      guard unsafe crypt(layer, isEncryption: true, offset, bytes, length) else {
        return unsafe moved(io, -EIO, core)
      }
    }
    let vector = unsafe memory.bindMemory(to: iovec.self, capacity: 1)
    unsafe vector.initialize(to: iovec(iov_base: bytes, iov_len: length))
    unsafe io.pointee.vectors = unsafe vector
    unsafe io.pointee.first = 0
    unsafe io.pointee.end = 1
    unsafe io.pointee.offset = offset
    unsafe io.pointee.remaining = UInt64(length)
    unsafe start(io, core)
  }

  private static func crypt(
    _ layer: UnsafeMutablePointer<Layer>, isEncryption: Bool, _ offset: UInt64, _ bytes: UnsafeMutableRawPointer,
    _ length: Int
  ) -> Bool {
    let size = unsafe Int(layer.pointee.base.pointee.blockSize)
    var block = offset / UInt64(size)
    for place in stride(from: 0, to: length, by: size) {
      let data = unsafe (bytes + place).assumingMemoryBound(to: UInt8.self)
      guard unsafe clinux_xts_crypt(layer.pointee.cipher, isEncryption ? 1 : 0, block, data, size) == 0 else {
        return false
      }
      block += 1
    }
    return true
  }

  private static let passed: BlockIO.Completion = { raw, result, core in
    let io = unsafe raw.assumingMemoryBound(to: BlockIO.self)
    let core = unsafe core.assumingMemoryBound(to: ReactorCore.self)
    unsafe pop(io, core)
    unsafe finish(io, result, core)
  }

  private static let moved: BlockIO.Completion = { raw, result, core in
    let io = unsafe raw.assumingMemoryBound(to: BlockIO.self)
    let core = unsafe core.assumingMemoryBound(to: ReactorCore.self)
    guard let frame = unsafe io.pointee.frame, let memory = unsafe frame.pointee.buffer,
      let raw = unsafe frame.pointee.target.pointee.layer
    else { return }
    let layer = unsafe raw.assumingMemoryBound(to: Layer.self)
    var result = result
    if result >= 0 {
      let length = unsafe pieceLength(frame)
      let bytes = unsafe memory + DeviceMemory.head
      let done = unsafe frame.pointee.note
      if unsafe io.pointee.kind == .read {
        if unsafe crypt(layer, isEncryption: false, frame.pointee.offset + done, bytes, length) {
          unsafe movePieces(
            frame.pointee.vectors, frame.pointee.first..<frame.pointee.end, at: Int(done), bytes, length,
            intoPieces: true)
        } else {
          result = -EIO
        }
      }
      unsafe frame.pointee.note = done + UInt64(length)
      if result >= 0, unsafe frame.pointee.note < frame.pointee.length {
        return unsafe startPiece(io, frame, core)
      }
    }
    let length = unsafe DeviceMemory.head + min(Int(frame.pointee.length), DeviceMemory.pieceLength)
    let target = unsafe frame.pointee.target
    unsafe pop(io, core)
    unsafe give(memory, length, target, core)
    unsafe finish(io, result, core)
  }

  override var specifics: JSONValue {
    ["crypto": ["base_bdev_name": .string(base?.name ?? ""), "name": .string(name), "key_name": .string(keyName)]]
  }

  override var creation: ConfigurationCall? {
    ConfigurationCall(
      method: "bdev_crypto_create",
      parameters: [
        "base_bdev_name": .string(base?.name ?? ""), "name": .string(name), "key_name": .string(keyName),
      ])
  }
}
