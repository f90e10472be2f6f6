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
  // What the system's libraries keep open comes with the first.
  try make().finish()
  descriptors = openDescriptors()
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
  var count = openDescriptors()
  for _ in 0..<100 where count > descriptors {
    usleep(20_000)
    count = openDescriptors()
  }
  guard count <= descriptors else { throw FuzzFailure("\(count) descriptors are open, \(descriptors) at the start") }
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

private func openDescriptors() -> Int {
  guard let directory = opendir("/proc/self/fd") else { return 0 }
  defer { closedir(directory) }
  var count = 0
  while readdir(directory) != nil { count += 1 }
  return count
}

/// libFuzzer looks at the time by a signal, which would interrupt the peer's waiting; the targets look themselves.
private func holdOffAlarms() {
  var signals = sigset_t()
  sigemptyset(&signals)
  sigaddset(&signals, SIGALRM)
  pthread_sigmask(SIG_BLOCK, &signals, nil)
}
