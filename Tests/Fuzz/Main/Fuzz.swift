import FuzzHarness
import Glibc

// What libFuzzer calls, on one thread: `YCLOUD_FUZZ_TARGET` names the target.

nonisolated(unsafe) private var target: (any FuzzTarget)?

@_cdecl("LLVMFuzzerTestOneInput")
public func testOneInput(_ bytes: UnsafePointer<UInt8>?, _ count: Int) -> CInt {
  do {
    if target == nil { holdOffAlarms() }
    if target == nil { target = try FuzzTargets.make(getenv("YCLOUD_FUZZ_TARGET").map { String(cString: $0) } ?? "") }
    try target?.run(Array(UnsafeBufferPointer(start: bytes, count: count)))
  } catch {
    // libFuzzer keeps the input of a process that aborts.
    _ = "FAILURE: \(error)\n".withCString { write(2, $0, strlen($0)) }
    abort()
  }
  return 0
}

/// libFuzzer looks at the time by a signal, which would interrupt the peer's waiting; the targets look themselves.
private func holdOffAlarms() {
  var signals = sigset_t()
  sigemptyset(&signals)
  sigaddset(&signals, SIGALRM)
  pthread_sigmask(SIG_BLOCK, &signals, nil)
}
