import CLinux
import Glibc

// A connection's bytes: received into one buffer, sent from wherever they are, many pieces with one call.
//
// SAFETY, for every `unsafe` here: a stream, its buffer and its outgoing items belong to one connection, which frees
// them when nothing of them is listed or under way; one thread touches them. Indices stay within the buffer's capacity.

/// Something to send: up to four pieces of memory, which stay as they are until `sent` is called.
@unsafe
struct OutgoingItem {
  var pieces = unsafe InlineArray<4, iovec>(repeating: iovec())
  /// Pieces that are still to be sent: `pieces[first..<count]`.
  var first = 0
  var count = 0
  var next: UnsafeMutablePointer<OutgoingItem>?
  /// What the item belongs to.
  let owner: UnsafeMutableRawPointer

  init(owner: UnsafeMutableRawPointer) { unsafe self.owner = unsafe owner }

  mutating func clear() {
    unsafe first = 0
    unsafe count = 0
  }

  mutating func append(_ base: UnsafeMutableRawPointer, _ length: Int) {
    unsafe pieces[count] = unsafe iovec(iov_base: base, iov_len: length)
    unsafe count += 1
  }
}

@unsafe
struct Stream {
  /// Called with an item's owner and the reactor's core when the last byte of the item is with the kernel.
  typealias Sent = @convention(c) (UnsafeMutableRawPointer, UnsafeMutableRawPointer) -> Void
  /// Called with the connection and the core when the peer takes no more bytes.
  typealias Broken = @convention(c) (UnsafeMutableRawPointer, UnsafeMutableRawPointer) -> Void

  let fd: CInt
  /// What was received and not consumed: `buffer[start..<end]`.
  let buffer: UnsafeMutableRawPointer
  let capacity: Int
  var start = 0
  var end = 0
  private(set) var firstOut: UnsafeMutablePointer<OutgoingItem>?
  private(set) var lastOut: UnsafeMutablePointer<OutgoingItem>?
  /// The socket's buffer is full: a watch tells when it is not.
  var isBlocked = false
  /// In the reactor's list of what to do before it sleeps.
  var isDeferred = false
  let connection: UnsafeMutableRawPointer
  let sent: Sent
  let broken: Broken
  var bytesIn: UInt64 = 0
  var bytesOut: UInt64 = 0

  init(
    fd: CInt, capacity: Int, connection: UnsafeMutableRawPointer, sent: @escaping Sent, broken: @escaping Broken
  ) {
    unsafe self.fd = fd
    unsafe self.capacity = capacity
    unsafe buffer = PageMemory.allocate(capacity)
    unsafe self.connection = unsafe connection
    unsafe self.sent = unsafe sent
    unsafe self.broken = unsafe broken
  }

  func deallocate() { unsafe PageMemory.deallocate(buffer, capacity) }

  /// How many received bytes wait.
  @inline(__always)
  var available: Int { unsafe end - start }

  @inline(__always)
  var bytes: UnsafeMutableRawPointer { unsafe buffer + start }

  @inline(__always)
  mutating func consume(_ count: Int) {
    unsafe start += count
    if unsafe start == end {
      unsafe start = 0
      unsafe end = 0
    }
  }

  /// Takes what the socket has: the number of bytes, 0 at the end of the stream, or a negative error number.
  @inline(__always)
  mutating func receive() -> Int {
    if unsafe start > 0, unsafe capacity - end < capacity / 2 {
      unsafe memmove(buffer, buffer + start, end - start)
      unsafe end -= start
      unsafe start = 0
    }
    guard unsafe end < capacity else { return -Int(EAGAIN) }
    let count = unsafe recv(fd, buffer + end, capacity - end, CInt(MSG_DONTWAIT))
    guard count >= 0 else { return -Int(errno) }
    unsafe end += count
    unsafe bytesIn &+= UInt64(count)
    return count
  }

  /// Takes bytes straight to where they belong.
  @inline(__always)
  mutating func receive(into destination: UnsafeMutableRawPointer, _ length: Int) -> Int {
    let count = unsafe recv(fd, destination, length, CInt(MSG_DONTWAIT))
    guard count >= 0 else { return -Int(errno) }
    unsafe bytesIn &+= UInt64(count)
    return count
  }

  @inline(__always)
  fileprivate mutating func append(_ item: UnsafeMutablePointer<OutgoingItem>) {
    unsafe item.pointee.next = nil
    if let last = unsafe lastOut {
      unsafe last.pointee.next = unsafe item
    } else {
      unsafe firstOut = unsafe item
    }
    unsafe lastOut = unsafe item
  }

  @inline(__always)
  fileprivate mutating func removeFirst() {
    guard let item = unsafe firstOut else { return }
    unsafe firstOut = unsafe item.pointee.next
    if unsafe firstOut == nil { unsafe lastOut = nil }
  }
}

/// Sends the item after those before it, together with all that comes until the reactor's turn ends.
@inline(__always)
func send(
  _ item: UnsafeMutablePointer<OutgoingItem>, _ stream: UnsafeMutablePointer<Stream>,
  _ core: UnsafeMutablePointer<ReactorCore>
) {
  unsafe stream.pointee.append(item)
  guard unsafe !stream.pointee.isDeferred, unsafe !stream.pointee.isBlocked else { return }
  unsafe stream.pointee.isDeferred = true
  unsafe core.pointee.`defer`(flushDeferred, stream)
}

private let flushDeferred: ReactorCore.Deferred = { stream, core in
  let stream = unsafe stream.assumingMemoryBound(to: Stream.self)
  unsafe stream.pointee.isDeferred = false
  unsafe flush(stream, core.assumingMemoryBound(to: ReactorCore.self))
}

/// Sends what waits, as much as the socket takes.
func flush(_ stream: UnsafeMutablePointer<Stream>, _ core: UnsafeMutablePointer<ReactorCore>) {
  let vectors = unsafe core.pointee.vectors
  while unsafe stream.pointee.firstOut != nil {
    var count = 0
    var total = 0
    var item = unsafe stream.pointee.firstOut
    while let current = unsafe item, unsafe count + current.pointee.count <= ReactorCore.maximumVectors {
      for index in unsafe current.pointee.first..<current.pointee.count {
        let piece = unsafe current.pointee.pieces[index]
        unsafe vectors[count] = unsafe piece
        count += 1
        total += unsafe piece.iov_len
      }
      unsafe item = unsafe current.pointee.next
    }
    var message = unsafe msghdr()
    unsafe message.msg_iov = unsafe vectors
    unsafe message.msg_iovlen = count
    let result = unsafe sendmsg(stream.pointee.fd, &message, CInt(MSG_DONTWAIT) | CInt(MSG_NOSIGNAL))
    if result < 0 {
      if errno == EINTR { continue }
      if errno == EAGAIN {
        unsafe stream.pointee.isBlocked = true
        unsafe core.pointee.watchWritable(stream)
        return
      }
      return unsafe stream.pointee.broken(stream.pointee.connection, core)
    }
    unsafe stream.pointee.bytesOut &+= UInt64(result)
    unsafe settle(stream, result, core)
    if result < total { continue }
  }
}

/// Takes `length` sent bytes off the items.
private func settle(
  _ stream: UnsafeMutablePointer<Stream>, _ length: Int, _ core: UnsafeMutablePointer<ReactorCore>
) {
  var left = length
  while let item = unsafe stream.pointee.firstOut {
    while unsafe item.pointee.first < item.pointee.count {
      let index = unsafe item.pointee.first
      let piece = unsafe item.pointee.pieces[index]
      guard unsafe left >= piece.iov_len else {
        unsafe item.pointee.pieces[index] = unsafe iovec(
          iov_base: piece.iov_base.map { unsafe $0 + left }, iov_len: piece.iov_len - left)
        return
      }
      left -= unsafe piece.iov_len
      unsafe item.pointee.first += 1
    }
    unsafe stream.pointee.removeFirst()
    unsafe stream.pointee.sent(item.pointee.owner, core)
  }
}
