import Glibc
import TestSupport
import Testing
import bmctl

/// A console as softhost serves it: a socket where bytes go in both directions.
private final class FakeConsole: Sendable {
  let path: String
  private let listener: CInt

  init(path: String) throws {
    self.path = path
    listener = socket(AF_UNIX, CInt(SOCK_STREAM.rawValue) | CInt(SOCK_CLOEXEC.rawValue), 0)
    var name = sockaddr_un()
    name.sun_family = sa_family_t(AF_UNIX)
    withUnsafeMutableBytes(of: &name.sun_path) { $0.copyBytes(from: Array(path.utf8)) }
    let status = withUnsafePointer(to: &name) {
      $0.withMemoryRebound(to: sockaddr.self, capacity: 1) {
        bind(listener, $0, socklen_t(MemoryLayout<sockaddr_un>.size))
      }
    }
    try #require(status == 0 && listen(listener, 4) == 0)
  }

  deinit { close(listener) }

  /// The next connection; nothing within ten seconds is a failure.
  func accept() throws -> CInt {
    try #require(ready(listener))
    let connection = Glibc.accept(listener, nil, nil)
    try #require(connection >= 0)
    return connection
  }

  func receive(_ connection: CInt) -> String {
    guard ready(connection) else { return "" }
    var bytes = [UInt8](repeating: 0, count: 4096)
    let count = read(connection, &bytes, bytes.count)
    return count > 0 ? String(decoding: bytes[..<count], as: UTF8.self) : ""
  }

  func send(_ connection: CInt, _ text: String) {
    var bytes = Array(text.utf8)[...]
    while !bytes.isEmpty {
      let count = bytes.withUnsafeBytes { Glibc.send(connection, $0.baseAddress, $0.count, CInt(MSG_NOSIGNAL)) }
      guard count > 0 else { return }
      bytes = bytes.dropFirst(count)
    }
  }

  private func ready(_ descriptor: CInt) -> Bool {
    var wanted = pollfd(fd: descriptor, events: Int16(POLLIN), revents: 0)
    return poll(&wanted, 1, 10_000) == 1
  }
}

@Suite("The program", .serialized)
struct ProcessTests {
  private func bmctl(_ command: String, environment: [String: String?] = [:]) throws -> ChildProcess {
    let program = try TestEnvironment.builtProduct("bmctl")
    return try ChildProcess("/bin/sh", ["-c", command.replacing("bmctl", with: program)], environment: environment)
  }

  @Test("What is piped into a console is typed, and its answer is shown")
  func pipe() async throws {
    let folder = try TemporaryDirectory()
    let console = try FakeConsole(path: folder.file("c"))
    let child = try bmctl("echo ls | bmctl console --address unix:\(console.path)")
    let connection = try console.accept()
    defer { close(connection) }
    #expect(console.receive(connection) == "ls\n")
    console.send(connection, "file-1\r\n")
    #expect(try await child.waitForExit() == .code(0))
    #expect(child.output.contains("file-1"))
  }

  @Test("The detach key ends the session while the guest floods it")
  func flood() async throws {
    let folder = try TemporaryDirectory()
    let console = try FakeConsole(path: folder.file("c"))
    let child = try bmctl(
      "(sleep 0.5; printf 'x\\035never'; sleep 2) | bmctl console --address unix:\(console.path) | tail -c 100; echo end"
    )
    let connection = try console.accept()
    defer { close(connection) }
    let text = String(repeating: "flood ", count: 1000)
    // Until bmctl is gone: then the socket refuses.
    for _ in 0..<10_000 {
      console.send(connection, text)
      var byte: UInt8 = 0
      if recv(connection, &byte, 1, CInt(MSG_DONTWAIT)) == 0 { break }
    }
    try await eventually(within: .seconds(15)) { child.output.contains("end") }
    child.kill()
  }

  @Test("A console that goes away is connected to again, and keys typed meanwhile are not lost on another line")
  func reconnect() async throws {
    let folder = try TemporaryDirectory()
    let console = try FakeConsole(path: folder.file("c"))
    try #require(mkfifo(folder.file("fifo"), 0o600) == 0)
    let child = try bmctl("(cat \(folder.file("fifo"))) | bmctl console --address unix:\(console.path) 2>&1")
    let first = try console.accept()
    console.send(first, "one ")
    try await eventually { child.output.contains("one") }
    close(first)
    let second = try console.accept()
    defer { close(second) }
    console.send(second, "two")
    try await eventually { child.output.contains("two") }
    #expect(child.output.contains("connected again"))
    child.kill()
  }

  @Test("A console session that is idle waits without a time limit, for the console, the keyboard and signals alike")
  func idle() async throws {
    let folder = try TemporaryDirectory()
    let console = try FakeConsole(path: folder.file("c"))
    try #require(mkfifo(folder.file("fifo"), 0o600) == 0)
    // Both ends, so that the keyboard never ends.
    let keyboard = open(folder.file("fifo"), O_RDWR | O_CLOEXEC)
    try #require(keyboard >= 0)
    defer { close(keyboard) }
    let child = try bmctl("exec bmctl console --address unix:\(console.path) < \(folder.file("fifo"))")
    let connection = try console.accept()
    defer { close(connection) }
    console.send(connection, "before ")
    try await eventually { child.output.contains("before") }
    // What the kernel says of the thread: poll(2), with -1 as its time.
    try await eventually(within: .seconds(10), "one thread polls without a time limit") {
      try threadsOf(child.pid).contains { waitsForEver($0) }
    }
    // Nothing wakes it up: idle hours are like this second.
    func wakeUps() throws -> [String] {
      try threadsOf(child.pid).filter(waitsForEver).map { thread in
        let status = try #require(contentsOfFile("\(thread)/status"))
        return String(status.split(separator: "\n").first { $0.hasPrefix("voluntary_ctxt_switches") } ?? "")
      }
    }
    let before = try wakeUps()
    try await Task.sleep(for: .seconds(1))
    #expect(try wakeUps() == before && before.count == 1)
    console.send(connection, "after")
    try await eventually { child.output.contains("after") }
    child.kill()
  }

  private func threadsOf(_ pid: Int32) throws -> [String] {
    let directory = try #require(opendir("/proc/\(pid)/task"))
    defer { closedir(directory) }
    var threads: [String] = []
    while let entry = readdir(directory) {
      let name = withUnsafePointer(to: &entry.pointee.d_name) { pointer in
        String(cString: UnsafeRawPointer(pointer).assumingMemoryBound(to: CChar.self))
      }
      if Int32(name) != nil { threads.append("/proc/\(pid)/task/\(name)") }
    }
    return threads
  }

  private func waitsForEver(_ thread: String) -> Bool {
    let words = (contentsOfFile("\(thread)/syscall") ?? "").split(separator: " ")
    guard words.count > 3, let number = Int(words[0]) else { return false }
    // poll's third argument is its time limit; that of ppoll, which other processors have instead, points to one.
    #if arch(x86_64)
      return number == 7 && words[3].hasSuffix("ffffffff")
    #else
      return number == 73 && words[3] == "0x0"
    #endif
  }

  @Test("Wrong command lines, missing clusters and refused images have their exit codes")
  func exitCodes() async throws {
    let folder = try TemporaryDirectory()
    let none: [String: String?] = ["KUBECONFIG": folder.file("none")]
    let cases: [(String, Int32)] = [
      ("bmctl get pods", 64), ("bmctl get machines", 7), ("bmctl wait a --for Flying", 64),
      ("bmctl console --address unix:\(folder.file("none"))", 7), ("bmctl console", 64), ("bmctl --help", 0),
      ("bmctl port-forward a", 64), ("bmctl port-forward a 80:x", 64), ("bmctl port-forward a 80 --address x", 64),
      ("bmctl port-forward a :80", 7), ("bmctl scp a b", 64), ("bmctl scp a bm-01:b --user=-x", 64),
      ("bmctl scp a bm-01:b", 7),
      ("bmctl scp -- -a bm-01:b", 7),
      ("bmctl image import x --sha256 zz", 64), ("bmctl host add A --bmc x --user u --dpu-node d", 64),
    ]
    for (command, code) in cases {
      let child = try bmctl(command, environment: none)
      #expect(try await child.waitForExit() == .code(code), "\(command): \(child.output)")
    }
  }

  @Test("Completion scripts are what their shells take", arguments: ["bash", "zsh", "fish"])
  func completion(shell: String) async throws {
    let child = try bmctl("bmctl completion \(shell)")
    #expect(try await child.waitForExit() == .code(0))
    #expect(child.output.contains("timeline"))
    guard shell == "bash" else { return }
    let folder = try TemporaryDirectory()
    let script = try folder.write("script", child.output)
    try await ChildProcess.run("bash", ["-n", script])
  }
}
