import Glibc
import Testing

/// How often tests kill what they look at, from which seed, and how long that may take: `YCLOUD_CRASH_ROUNDS` and
/// `YCLOUD_CRASH_SEED` say it where somebody wants more rounds than CI has time for, or one that failed again.
enum CrashRounds {
  static func count(otherwise few: UInt64) -> UInt64 { environment("YCLOUD_CRASH_ROUNDS") ?? few }

  static func firstSeed() -> UInt64 { environment("YCLOUD_CRASH_SEED") ?? .random(in: 0..<1_000_000) }

  /// A round of the slowest of them takes 2 s on a quiet machine of two processors; this is ten times that.
  static func timeLimit(_ few: UInt64) -> TimeLimitTrait.Duration {
    .minutes(10 + count(otherwise: few) / 3)
  }

  private static func environment(_ name: String) -> UInt64? { getenv(name).flatMap { UInt64(String(cString: $0)) } }
}
