import FuzzHarness
import Glibc
import TestSupport
import Testing

/// Bytes of strangers at every door of the data plane: what is kept in `Tests/Fuzz/corpus`, and seeded changes of it.
///
/// `YCLOUD_FUZZ_SEED` begins with another seed, `YCLOUD_FUZZ_RUNS` does more. The input that was tried last stands in
/// `.build/fuzz/<target>`: after a crash it is the one to look at, and belongs into the corpus with the correction.
/// `make fuzz` looks for new ones by coverage.
@Suite(.serialized) struct FuzzTests {
  /// So many changed inputs take a few seconds on two cores.
  private static let runs = [
    "json": 40_000, "rpc": 600, "state": 100, "lvol": 400, "nbd": 2_000, "nvmf": 1_200, "initiator": 100,
    "vhost": 1_500,
  ]

  private static func environment(_ name: String) -> Int? { getenv(name).flatMap { Int(String(cString: $0)) } }

  @Test(.timeLimit(.minutes(10)), arguments: FuzzTargets.names) func takesAnyBytes(name: String) throws {
    let corpus = FuzzTargets.corpus("\(TestEnvironment.repository)/Tests/Fuzz/corpus/\(name)")
    #expect(!corpus.isEmpty)
    let seed = Self.environment("YCLOUD_FUZZ_SEED") ?? 1
    var mutator = FuzzMutator(SeededGenerator(seed: UInt64(truncatingIfNeeded: seed)))
    let last = try LastInput("\(TestEnvironment.repository)/.build/fuzz", name)
    let target = try FuzzTargets.make(name)
    func run(_ input: [UInt8], _ what: String) throws {
      last.keep(input)
      do {
        try target.run(input)
      } catch {
        throw TestEnvironmentError("\(what) of \(name), which is kept in \(last.path): \(error)")
      }
    }
    for input in corpus { try run(input.bytes, "corpus input \(input.name)") }
    let inputs = corpus.map(\.bytes)
    for index in 0..<(Self.environment("YCLOUD_FUZZ_RUNS") ?? Self.runs[name] ?? 100) {
      try run(mutator.mutate(inputs), "run \(index) of seed \(seed)")
    }
    try target.finish()
  }

  /// A file that has the present input also after this process has crashed.
  private final class LastInput {
    let path: String
    private let fd: Int32

    init(_ folder: String, _ name: String) throws {
      mkdir(folder, 0o755)
      path = "\(folder)/\(name)"
      fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0o644)
      guard fd >= 0 else { throw TestEnvironmentError("cannot make \(path)") }
    }

    deinit { close(fd) }

    func keep(_ input: [UInt8]) {
      ftruncate(fd, off_t(input.count))
      _ = input.withUnsafeBytes { pwrite(fd, $0.baseAddress, $0.count, 0) }
    }
  }
}
