import CLinux
import Glibc

// A connection's bytes: received into one buffer, sent from wherever they are, many pieces with one call. Where they are
// encrypted, EncryptedStream.swift stands between them and the socket.
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
  /// What was received and not consumed: `buffer[start..<end]`. There is no room until `reserve` is called.
  private(set) var buffer: UnsafeMutableRawPointer
  private(set) var capacity = 0
  var start = 0
  var end = 0
  private(set) var firstOut: UnsafeMutablePointer<OutgoingItem>?
  private(set) var lastOut: UnsafeMutablePointer<OutgoingItem>?
  /// The socket's buffer is full: a watch tells when it is not.
  var isBlocked = false
  /// The socket had less than there was room for: there is nothing more until its watch tells so.
  private(set) var isDry = false
  /// In the reactor's list of what to do before it sleeps.
  var isDeferred = false
  let connection: UnsafeMutableRawPointer
  let sent: Sent
  /// Called with the connection in place of `sent` for items that the connection itself owns.
  let told: Sent
  let broken: Broken
  var bytesIn: UInt64 = 0
  var bytesOut: UInt64 = 0
  /// Where the stream is encrypted: the session, and what is encrypted and not with the kernel.
  var tls: OpaquePointer?
  var cipher = unsafe Ciphertext()

  init(
    fd: CInt, connection: UnsafeMutableRawPointer, sent: @escaping Sent, told: @escaping Sent, broken: @escaping Broken
  ) {
    unsafe self.fd = fd
    unsafe buffer = UnsafeMutableRawPointer.allocate(byteCount: 16, alignment: 16)
    unsafe self.connection = unsafe connection
    unsafe self.sent = unsafe sent
    unsafe self.told = unsafe told
    unsafe self.broken = unsafe broken
  }

  func deallocate() {
    // Without room there are a few bytes from the heap, so that there is an address.
    if unsafe capacity > 0 { unsafe PageMemory.deallocate(buffer, capacity) } else { unsafe buffer.deallocate() }
  }

  /// Makes room for so many received bytes, beside those that wait; false where there is no memory for them.
  mutating func reserve(_ length: Int) -> Bool {
    guard unsafe length > capacity else { return true }
    guard let larger = unsafe PageMemory.allocate(length) else { return false }
    unsafe larger.copyMemory(from: bytes, byteCount: available)
    unsafe deallocate()
    unsafe buffer = unsafe larger
    unsafe end -= start
    unsafe start = 0
    unsafe capacity = length
    return true
  }

  /// Puts bytes behind those that wait, as if they had been received. There has to be room.
  mutating func put(_ bytes: UnsafeRawBufferPointer) {
    guard let base = bytes.baseAddress, unsafe bytes.count <= capacity - end else { return }
    unsafe (buffer + end).copyMemory(from: base, byteCount: bytes.count)
    unsafe end += bytes.count
  }

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

  /// Moves what waits to the start where room behind it is scarce.
  @inline(__always)
  mutating func compact() {
    guard unsafe start > 0, unsafe capacity - end < capacity / 2 else { return }
    unsafe memmove(buffer, buffer + start, end - start)
    unsafe end -= start
    unsafe start = 0
  }

  /// Takes what the socket has: the number of bytes, 0 at the end of the stream, or a negative error number.
  @inline(__always)
  mutating func receive() -> Int {
    unsafe compact()
    guard unsafe end < capacity else { return -Int(EAGAIN) }
    let count = unsafe recv(fd, buffer + end, capacity - end, CInt(MSG_DONTWAIT))
    unsafe isDry = count < capacity - end
    guard count >= 0 else { return -Int(errno) }
    unsafe end += count
    unsafe bytesIn &+= UInt64(count)
    return count
  }

  /// Takes bytes straight to where they belong.
  @inline(__always)
  mutating func receive(into destination: UnsafeMutableRawPointer, _ length: Int) -> Int {
    let count = unsafe recv(fd, destination, length, CInt(MSG_DONTWAIT))
    unsafe isDry = count < length
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
  // One watch at a time.
  guard unsafe !stream.pointee.isBlocked else { return }
  if unsafe stream.pointee.tls != nil { return unsafe flushEncrypted(stream, core) }
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
func settle(
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
    let owner = unsafe item.pointee.owner
    if unsafe owner == stream.pointee.connection {
      unsafe stream.pointee.told(owner, core)
    } else {
      unsafe stream.pointee.sent(owner, core)
    }
  }
}
