/// Frames for requests that pass through layers: taken and given back without an allocation each. Reactor's thread.
///
/// SAFETY: frames are made in blocks that live as long as the pool, and handed out one at a time.
@unsafe
struct FramePool {
  private var free: [UnsafeMutablePointer<BlockFrame>] = unsafe []
  private var blocks: [UnsafeMutablePointer<BlockFrame>] = unsafe []

  private static let blockLength = 256
  /// The most requests within layers at one time, for each reactor: 262,144.
  private static let maximumBlocks = 1024

  mutating func take() -> UnsafeMutablePointer<BlockFrame>? {
    if let frame = unsafe free.popLast() { return unsafe frame }
    guard unsafe blocks.count < FramePool.maximumBlocks else { return nil }
    let block = unsafe UnsafeMutablePointer<BlockFrame>.allocate(capacity: FramePool.blockLength)
    unsafe blocks.append(block)
    unsafe free.reserveCapacity(blocks.count * FramePool.blockLength)
    for index in unsafe 1..<FramePool.blockLength { unsafe free.append(block + index) }
    return unsafe block
  }

  mutating func give(_ frame: UnsafeMutablePointer<BlockFrame>) { unsafe free.append(frame) }

  /// How many are out.
  var lent: Int { unsafe blocks.count * FramePool.blockLength - free.count }

  func deallocate() {
    for index in unsafe blocks.indices { unsafe blocks[index].deallocate() }
  }
}
