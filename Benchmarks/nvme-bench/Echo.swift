import BenchmarkSupport
import CLinux
import Glibc

/// The yardstick: the same bytes as 4 KiB reads over NVMe/TCP, moved with nothing but epoll, recv and send.
///
/// A request has the length of a command's capsule, an answer that of a PDU with 4 KiB of data. Requests that have come
/// together are answered together.
enum Echo {
  static let requestLength = 72
  static let answerLength = 24 + 4096
  private static let bufferLength = 256 << 10

  /// Listens at a free port of the loopback, whose number `ready` gets, and serves one connection after the other.
  static func serve(ready: (Int) -> Void) throws {
    let listener = clinux_tcp_listen("127.0.0.1", 0)
    guard listener >= 0 else { throw BenchmarkError("cannot listen") }
    var address = sockaddr_in()
    var length = socklen_t(MemoryLayout<sockaddr_in>.size)
    withUnsafeMutablePointer(to: &address) { pointer in
      pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) { _ = getsockname(listener, $0, &length) }
    }
    ready(Int(UInt16(bigEndian: address.sin_port)))
    var waiting = pollfd(fd: listener, events: Int16(POLLIN), revents: 0)
    while true {
      poll(&waiting, 1, -1)
      let fd = clinux_accept(listener)
      guard fd >= 0 else { continue }
      clinux_tune_tcp(fd)
      answerAll(fd)
      close(fd)
    }
  }

  private static func answerAll(_ fd: CInt) {
    let poller = epoll_create1(CInt(EPOLL_CLOEXEC))
    defer { close(poller) }
    var event = epoll_event(events: EPOLLIN.rawValue, data: epoll_data(fd: fd))
    epoll_ctl(poller, EPOLL_CTL_ADD, fd, &event)
    let input = UnsafeMutableRawPointer.allocate(byteCount: bufferLength, alignment: 4096)
    let output = UnsafeMutableRawPointer.allocate(byteCount: 64 * answerLength, alignment: 4096)
    memset(output, 0x5A, 64 * answerLength)
    defer {
      input.deallocate()
      output.deallocate()
    }
    var received = 0
    var owed = 0
    while true {
      var happened = epoll_event()
      guard epoll_wait(poller, &happened, 1, -1) >= 0 || errno == EINTR else { return }
      let count = recv(fd, input, bufferLength, CInt(MSG_DONTWAIT))
      if count == 0 || (count < 0 && errno != EAGAIN) { return }
      received += max(0, count)
      owed += received / requestLength * answerLength
      received %= requestLength
      while owed > 0 {
        // The output holds whole answers, one behind the other: any part of it that is as long is as good.
        let sent = send(fd, output, min(owed, 64 * answerLength), CInt(MSG_DONTWAIT) | CInt(MSG_NOSIGNAL))
        if sent < 0, errno == EAGAIN { break }
        guard sent > 0 else { return }
        owed -= sent
      }
      let wanted = owed > 0 ? EPOLLIN.rawValue | EPOLLOUT.rawValue : EPOLLIN.rawValue
      if wanted != event.events {
        event.events = wanted
        epoll_ctl(poller, EPOLL_CTL_MOD, fd, &event)
      }
    }
  }

  /// Keeps `depth` requests under way for as many seconds; how many were answered.
  static func load(port: Int, depth: Int, seconds: Double) throws -> Int {
    let fd = clinux_tcp_connect("127.0.0.1", UInt16(port))
    guard fd >= 0 else { throw BenchmarkError("cannot connect to the echo") }
    defer { close(fd) }
    clinux_tune_tcp(fd)
    let poller = epoll_create1(CInt(EPOLL_CLOEXEC))
    defer { close(poller) }
    var event = epoll_event(events: EPOLLOUT.rawValue, data: epoll_data(fd: fd))
    epoll_ctl(poller, EPOLL_CTL_ADD, fd, &event)
    var happened = epoll_event()
    epoll_wait(poller, &happened, 1, 5000)
    event.events = EPOLLIN.rawValue
    epoll_ctl(poller, EPOLL_CTL_MOD, fd, &event)
    let input = UnsafeMutableRawPointer.allocate(byteCount: bufferLength, alignment: 4096)
    let output = UnsafeMutableRawPointer.allocate(byteCount: depth * requestLength, alignment: 4096)
    memset(output, 0xA5, depth * requestLength)
    defer {
      input.deallocate()
      output.deallocate()
    }
    func ask(_ count: Int) throws {
      guard count > 0 else { return }
      let length = count * requestLength
      guard send(fd, output, length, CInt(MSG_NOSIGNAL)) == length else {
        throw BenchmarkError("the echo takes nothing")
      }
    }
    let end = clinux_monotonic_nanoseconds() &+ UInt64(seconds * 1e9)
    try ask(depth)
    var answers = 0
    var received = 0
    while clinux_monotonic_nanoseconds() < end {
      guard epoll_wait(poller, &happened, 1, 5000) > 0 else { throw BenchmarkError("the echo does not answer") }
      let count = recv(fd, input, bufferLength, CInt(MSG_DONTWAIT))
      guard count > 0 else { throw BenchmarkError("the echo has gone") }
      received += count
      let whole = received / answerLength
      received %= answerLength
      answers += whole
      try ask(whole)
    }
    return answers
  }
}
