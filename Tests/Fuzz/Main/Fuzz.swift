import Dispatch
import FuzzHarness
import Glibc

// What libFuzzer calls, on one thread: `YCLOUD_FUZZ_TARGET` names the target.

nonisolated(unsafe) private var target: (any FuzzTarget)?
/// Descriptors that are open where no target is.
nonisolated(unsafe) private var descriptors = 0

@_cdecl("LLVMFuzzerTestOneInput")
public func testOneInput(_ bytes: UnsafePointer<UInt8>?, _ count: Int) -> CInt {
  judge {
    if target == nil { try begin() }
    try target?.run(Array(UnsafeBufferPointer(start: bytes, count: count)))
  }
  return 0
}

private func begin() throws {
  holdOffAlarms()
  // What the system's libraries keep open comes with the first, and with the first timer.
  try make().finish()
  let timer = DispatchSemaphore(value: 0)
  DispatchQueue.global().asyncAfter(deadline: .now() + .milliseconds(50)) { timer.signal() }
  timer.wait()
  descriptors = openDescriptors().count
  target = try make()
  atexit { judge { try end() } }
}

private func make() throws -> any FuzzTarget {
  try FuzzTargets.make(getenv("YCLOUD_FUZZ_TARGET").map { String(cString: $0) } ?? "")
}

/// After the last input: everything is given back.
private func end() throws {
  guard let last = target else { return }
  try last.finish()
  target = nil
  // A connection's last words may take a moment.
  var open = openDescriptors()
  for _ in 0..<100 where open.count > descriptors {
    usleep(20_000)
    open = openDescriptors()
  }
  guard open.count <= descriptors else {
    throw FuzzFailure("\(open.count) descriptors are open, \(descriptors) at the start: \(open)")
  }
}

private func judge(_ body: () throws -> Void) {
  do {
    try body()
  } catch {
    // libFuzzer keeps the input of a process that aborts.
    _ = "FAILURE: \(error)\n".withCString { write(2, $0, strlen($0)) }
    abort()
  }
}

/// What each of them is.
private func openDescriptors() -> [String] {
  var names: [String] = []
  for fd in 0..<4096 where fcntl(CInt(fd), F_GETFD) >= 0 {
    var name = [UInt8](repeating: 0, count: 256)
    let count = name.withUnsafeMutableBytes { readlink("/proc/self/fd/\(fd)", $0.baseAddress, $0.count) }
    names.append(String(decoding: name.prefix(max(0, count)), as: UTF8.self))
  }
  return names
}

/// libFuzzer looks at the time by a signal, which would interrupt the peer's waiting; the targets look themselves.
private func holdOffAlarms() {
  var signals = sigset_t()
  sigemptyset(&signals)
  sigaddset(&signals, SIGALRM)
  pthread_sigmask(SIG_BLOCK, &signals, nil)
}
