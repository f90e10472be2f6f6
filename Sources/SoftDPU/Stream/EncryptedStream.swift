import CLinux
import Glibc

// TLS between a stream and its socket: what comes is decrypted to where it belongs, what goes is encrypted record by
// record into one bounded buffer, which leaves with one call. Nothing here waits, and nothing is allocated for a record.
//
// SAFETY, for every `unsafe` here: as in Stream.swift; the session, the ciphertext and the reactor's scratch memory are
// touched by the reactor's thread only, and what is lent to the session is taken back in the same function.

/// What is encrypted and not yet with the kernel: `memory[start..<end]`. The memory is held only while there is some.
@unsafe
struct Ciphertext {
  var memory: UnsafeMutableRawPointer?
  var start = 0
  var end = 0
  /// The session has ended: 0 where the peer ended it, a negative error number where it failed.
  var outcome: Int?

  /// How much is encrypted ahead of the socket.
  static let capacity = 128 << 10
  /// The longest record: its content, and what it takes in the buffer with header, padding and tag.
  static let recordLength = 16384
  static let recordRoom = 16896

  var room: Int { unsafe Ciphertext.capacity - end }

  /// Moves what waits to the start.
  mutating func compact() {
    guard unsafe start > 0, let memory = unsafe memory else { return }
    unsafe memmove(memory, memory + start, end - start)
    unsafe end -= start
    unsafe start = 0
  }
}

/// Memory of a reactor for bytes that come from a socket or go there.
@unsafe
struct SocketScratch {
  /// What came from the socket and is not decrypted.
  let received: UnsafeMutableRawPointer
  static let receivedLength = 64 << 10
  /// What is gathered to be one record.
  let record: UnsafeMutableRawPointer
  /// Messages of a negotiation.
  let messages: UnsafeMutableRawPointer
  static let messagesLength = 32 << 10

  init() {
    unsafe received = .allocate(byteCount: SocketScratch.receivedLength, alignment: 4096)
    unsafe record = .allocate(byteCount: Ciphertext.recordRoom, alignment: 4096)
    unsafe messages = .allocate(byteCount: SocketScratch.messagesLength, alignment: 4096)
  }

  func deallocate() {
    unsafe received.deallocate()
    unsafe record.deallocate()
    unsafe messages.deallocate()
  }
}

/// Takes what the socket has: to `destination` first, what does not fit there to the stream's buffer. The number of bytes
/// at the destination (where it has no length: in the buffer), 0 at the end, or a negative error number.
func receiveEncrypted(
  _ stream: UnsafeMutablePointer<Stream>, into destination: UnsafeMutableRawPointer, _ length: Int,
  _ core: UnsafeMutablePointer<ReactorCore>
) -> Int {
  guard let tls = unsafe stream.pointee.tls else { return -Int(EINVAL) }
  if let outcome = unsafe stream.pointee.cipher.outcome { return outcome }
  unsafe stream.pointee.compact()
  let received = unsafe core.pointee.scratch.received
  while true {
    // Whatever comes has to fit, with the rest of a record that the session has already: plaintext is never longer.
    let room = unsafe length + stream.pointee.capacity - stream.pointee.end - Ciphertext.recordRoom
    guard room > 0 else { return -Int(EAGAIN) }
    let count = unsafe recv(stream.pointee.fd, received, min(room, SocketScratch.receivedLength), CInt(MSG_DONTWAIT))
    guard count > 0 else { return count == 0 ? 0 : -Int(errno) }
    unsafe stream.pointee.bytesIn &+= UInt64(count)
    unsafe clinux_tls_lend_input(tls, received, count)
    var taken = 0
    var buffered = 0
    var result = 0
    // Outside of the handshake the session has nothing to say that cannot wait for the next record.
    let isHandshake = unsafe clinux_tls_is_ready(tls) == 0
    if isHandshake { unsafe lendCiphertext(stream, core) }
    repeat {
      if taken < length {
        result = unsafe clinux_tls_read(tls, destination + taken, length - taken)
        if result > 0 { taken += result }
      } else {
        let end = unsafe stream.pointee.end
        result = unsafe clinux_tls_read(tls, stream.pointee.buffer + end, stream.pointee.capacity - end)
        if result > 0 {
          unsafe stream.pointee.end += result
          buffered += result
        }
      }
    } while result > 0
    if isHandshake {
      unsafe stream.pointee.cipher.end += clinux_tls_take_output(tls)
      unsafe _ = sendCiphertext(stream, core)
    }
    if result != -Int(EAGAIN) { unsafe stream.pointee.cipher.outcome = result }
    unsafe clinux_tls_lend_input(tls, nil, 0)
    let gained = length > 0 ? taken : buffered
    if gained > 0 { return gained }
    if let outcome = unsafe stream.pointee.cipher.outcome { return outcome }
    // A part of a record: the socket may have more.
  }
}

/// Has the session write behind what is encrypted already.
private func lendCiphertext(_ stream: UnsafeMutablePointer<Stream>, _ core: UnsafeMutablePointer<ReactorCore>) {
  guard let tls = unsafe stream.pointee.tls, unsafe reserveCiphertext(stream, core),
    let memory = unsafe stream.pointee.cipher.memory
  else { return }
  unsafe clinux_tls_lend_output(tls, memory + stream.pointee.cipher.end, stream.pointee.cipher.room)
}

private func reserveCiphertext(
  _ stream: UnsafeMutablePointer<Stream>, _ core: UnsafeMutablePointer<ReactorCore>
) -> Bool {
  if unsafe stream.pointee.cipher.memory == nil {
    unsafe stream.pointee.cipher.memory = unsafe core.pointee.buffers.take(Ciphertext.capacity)
  }
  return unsafe stream.pointee.cipher.memory != nil
}

/// Gives the memory back that nothing stands in.
func releaseCiphertext(_ stream: UnsafeMutablePointer<Stream>, _ core: UnsafeMutablePointer<ReactorCore>) {
  guard let memory = unsafe stream.pointee.cipher.memory else { return }
  unsafe core.pointee.buffers.give(memory, Ciphertext.capacity)
  unsafe stream.pointee.cipher.memory = nil
}

/// Sends what is encrypted; false where some of it has to wait, or the peer takes no more.
private func sendCiphertext(
  _ stream: UnsafeMutablePointer<Stream>, _ core: UnsafeMutablePointer<ReactorCore>
) -> Bool {
  guard unsafe !stream.pointee.isBlocked else { return false }
  while unsafe stream.pointee.cipher.start < stream.pointee.cipher.end {
    guard let memory = unsafe stream.pointee.cipher.memory else { break }
    let start = unsafe stream.pointee.cipher.start
    let count = unsafe Glibc.send(
      stream.pointee.fd, memory + start, stream.pointee.cipher.end - start, CInt(MSG_DONTWAIT) | CInt(MSG_NOSIGNAL))
    if count < 0 {
      if errno == EINTR { continue }
      if errno == EAGAIN {
        unsafe stream.pointee.isBlocked = true
        unsafe core.pointee.watchWritable(stream)
      } else {
        unsafe stream.pointee.broken(stream.pointee.connection, core)
      }
      return false
    }
    unsafe stream.pointee.bytesOut &+= UInt64(count)
    unsafe stream.pointee.cipher.start += count
  }
  unsafe stream.pointee.cipher.start = 0
  unsafe stream.pointee.cipher.end = 0
  if unsafe stream.pointee.firstOut == nil { unsafe releaseCiphertext(stream, core) }
  return true
}

/// Encrypts and sends what waits, as much as the socket takes and a buffer more.
func flushEncrypted(_ stream: UnsafeMutablePointer<Stream>, _ core: UnsafeMutablePointer<ReactorCore>) {
  while unsafe sendCiphertext(stream, core) {
    guard unsafe stream.pointee.firstOut != nil else { return }
    guard unsafe encryptAhead(stream, core) else {
      return unsafe stream.pointee.broken(stream.pointee.connection, core)
    }
  }
  // While the peer takes what is in the socket, the next buffer is made: it leaves as soon as there is room.
  guard unsafe stream.pointee.isBlocked, unsafe stream.pointee.firstOut != nil else { return }
  unsafe stream.pointee.cipher.compact()
  guard unsafe encryptAhead(stream, core) else { return unsafe stream.pointee.broken(stream.pointee.connection, core) }
}

/// Encrypts what waits until the buffer is full; false where the session or the memory fails.
private func encryptAhead(_ stream: UnsafeMutablePointer<Stream>, _ core: UnsafeMutablePointer<ReactorCore>) -> Bool {
  guard let tls = unsafe stream.pointee.tls, unsafe reserveCiphertext(stream, core),
    let memory = unsafe stream.pointee.cipher.memory
  else { return false }
  while unsafe stream.pointee.firstOut != nil, unsafe stream.pointee.cipher.room >= Ciphertext.recordRoom {
    let (content, length) = unsafe nextRecord(stream, core)
    if length > 0 {
      unsafe clinux_tls_lend_output(tls, memory + stream.pointee.cipher.end, stream.pointee.cipher.room)
      let written = unsafe clinux_tls_write(tls, content, length)
      unsafe stream.pointee.cipher.end += clinux_tls_take_output(tls)
      guard written == length else { return false }
    }
    unsafe settle(stream, length, core)
  }
  return true
}

/// What the next record is made of: a piece where it lies, or small pieces put together.
private func nextRecord(
  _ stream: UnsafeMutablePointer<Stream>, _ core: UnsafeMutablePointer<ReactorCore>
) -> (UnsafeRawPointer, Int) {
  let record = unsafe core.pointee.scratch.record
  var length = 0
  var item = unsafe stream.pointee.firstOut
  while let current = unsafe item {
    for index in unsafe current.pointee.first..<current.pointee.count {
      let piece = unsafe current.pointee.pieces[index]
      guard let base = unsafe piece.iov_base else { continue }
      if length == 0, unsafe piece.iov_len >= Ciphertext.recordLength {
        return (UnsafeRawPointer(base), unsafe Ciphertext.recordLength)
      }
      let part = unsafe min(piece.iov_len, Ciphertext.recordLength - length)
      unsafe (record + length).copyMemory(from: base, byteCount: part)
      length += part
      if unsafe length == Ciphertext.recordLength { return (UnsafeRawPointer(record), length) }
    }
    unsafe item = unsafe current.pointee.next
  }
  return (UnsafeRawPointer(record), length)
}

/// Tells the peer that nothing more comes, where the socket takes it at once.
func finishEncrypted(_ stream: UnsafeMutablePointer<Stream>, _ core: UnsafeMutablePointer<ReactorCore>) {
  // Not behind half a record, and not after the session has failed.
  guard let tls = unsafe stream.pointee.tls, unsafe !stream.pointee.isBlocked,
    unsafe stream.pointee.cipher.start == stream.pointee.cipher.end, unsafe stream.pointee.cipher.outcome ?? 0 == 0
  else { return }
  let memory = unsafe core.pointee.scratch.record
  unsafe clinux_tls_lend_output(tls, memory, Ciphertext.recordRoom)
  unsafe clinux_tls_finish(tls)
  let length = unsafe clinux_tls_take_output(tls)
  if length > 0 {
    _ = unsafe Glibc.send(stream.pointee.fd, memory, length, CInt(MSG_DONTWAIT) | CInt(MSG_NOSIGNAL))
  }
}
