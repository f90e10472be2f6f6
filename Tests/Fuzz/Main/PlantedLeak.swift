import FuzzHarness
import Glibc

/// Loses something with each input, on purpose: `fuzz.sh` looks whether a leak is found here at all, before it believes
/// that there is none.
final class PlantedLeak: FuzzTarget {
  private let isMemory: Bool

  /// Nil where another target is meant.
  init?(_ name: String) {
    guard ["planted-memory", "planted-descriptor"].contains(name) else { return nil }
    isMemory = name == "planted-memory"
  }

  func run(_ input: [UInt8]) {
    if isMemory { PlantedLeak.loseMemory() } else { _ = dup(0) }
  }

  @inline(never)
  private static func loseMemory() {
    // Written to, so that it is not optimized away.
    let memory = UnsafeMutableRawPointer.allocate(byteCount: 4096, alignment: 16)
    memory.storeBytes(of: UInt64.random(in: 0 ... .max), as: UInt64.self)
  }
}
