/// SplitMix64: the same seed gives the same numbers on every machine.
package struct SeededRandom: RandomNumberGenerator, Sendable {
  private var state: UInt64

  package init(seed: UInt64) { state = seed }

  /// A stream of its own for a part of the fleet: what one host draws does not depend on what others do.
  package init(seed: UInt64, part: String) {
    var hash: UInt64 = 0xcbf2_9ce4_8422_2325 ^ seed
    for byte in part.utf8 { hash = (hash ^ UInt64(byte)) &* 0x100_0000_01b3 }
    state = hash
    _ = next()
  }

  package mutating func next() -> UInt64 {
    state &+= 0x9e37_79b9_7f4a_7c15
    var value = state
    value = (value ^ (value >> 30)) &* 0xbf58_476d_1ce4_e5b9
    value = (value ^ (value >> 27)) &* 0x94d0_49bb_1331_11eb
    return value ^ (value >> 31)
  }
}

/// A triangular distribution of times: none below `minimum`, none above `maximum`, most around `mode`.
public struct TriangularDelay: Sendable, Hashable {
  public let minimum: Double
  public let mode: Double
  public let maximum: Double

  /// Seconds; nil unless 0 <= minimum <= mode <= maximum <= 86400.
  public init?(minimum: Double, mode: Double, maximum: Double) {
    guard minimum >= 0, minimum <= mode, mode <= maximum, maximum <= 86_400 else { return nil }
    self.minimum = minimum
    self.mode = mode
    self.maximum = maximum
  }

  /// Always the same time, in seconds, of 0 to a day.
  public init(constant seconds: Double) {
    let seconds = min(max(seconds, 0), 86_400)
    minimum = seconds
    mode = seconds
    maximum = seconds
  }

  /// `min,mode,max` in seconds, or one number for a time that is always the same.
  public init?(_ text: String) {
    let numbers = text.split(separator: ",", omittingEmptySubsequences: false).map { Double($0) }
    switch numbers.count {
    case 1:
      guard let value = numbers[0], (0...86_400).contains(value) else { return nil }
      self.init(constant: value)
    case 3:
      guard let minimum = numbers[0], let mode = numbers[1], let maximum = numbers[2] else { return nil }
      self.init(minimum: minimum, mode: mode, maximum: maximum)
    default: return nil
    }
  }

  package func sample(_ random: inout some RandomNumberGenerator) -> Duration {
    guard maximum > minimum else { return .seconds(minimum) }
    let share = Double.random(in: 0..<1, using: &random)
    let bend = (mode - minimum) / (maximum - minimum)
    let seconds =
      share < bend
      ? minimum + (share * (maximum - minimum) * (mode - minimum)).squareRoot()
      : maximum - ((1 - share) * (maximum - minimum) * (maximum - mode)).squareRoot()
    return .seconds(seconds)
  }
}
