import FuzzHarness
import Glibc

// What libFuzzer calls, on one thread: `YCLOUD_FUZZ_TARGET` names the target.

nonisolated(unsafe) private var target: (any FuzzTarget)?
/// What is open where no target is.
nonisolated(unsafe) private var atRest: [Descriptor] = []

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
  // What the system's libraries keep open comes with the first of them.
  try runOnce()
  atRest = Descriptor.open
  target = try make()
  // Before the leak sanitizer looks, which comes at the end of the process as well: what is registered last runs first.
  atexit { judge { try end() } }
}

private func runOnce() throws {
  let first = try make()
  try first.run(Array(#"{"subsystems": []}"#.utf8))
  try first.finish()
}

private func make() throws -> any FuzzTarget {
  let name = getenv("YCLOUD_FUZZ_TARGET").map { String(cString: $0) } ?? ""
  return try PlantedLeak(name) ?? FuzzTargets.make(name)
}

/// After the last input: everything is given back. Memory that nothing points to is looked for afterwards, by the leak
/// sanitizer.
private func end() throws {
  // Nothing here may hold on to it: what it has open is closed when it goes.
  try target?.finish()
  target = nil
  // The last words of a connection may take a moment.
  for _ in 0..<250 where Descriptor.open.count > atRest.count { usleep(20_000) }
  let left = Descriptor.open
  guard left.count <= atRest.count else {
    throw FuzzFailure("descriptors leak: \(left.count) are open, \(atRest.count) at the start: \(left)")
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

/// libFuzzer looks at the time by a signal, which would interrupt the peer's waiting; the targets look themselves.
private func holdOffAlarms() {
  var signals = sigset_t()
  sigemptyset(&signals)
  sigaddset(&signals, SIGALRM)
  pthread_sigmask(SIG_BLOCK, &signals, nil)
}
