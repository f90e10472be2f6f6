#if canImport(Glibc)
  import Glibc
#elseif canImport(Musl)
  import Musl
#endif

/// What goes wrong in a simulated fleet, and how often.
public struct Faults: Sendable, Hashable {
  /// Share of the requests to a BMC that it answers after `hangSeconds` only.
  public var hang = 0.0
  public var hangSeconds = 60.0
  /// Share of the requests that it answers with 500, without having done anything.
  public var error = 0.0
  /// Share of the requests that it carries out and whose answer is lost.
  public var lost = 0.0
  /// How often an hour a DPU starts anew: what it shows is gone, and it is silent for a while.
  public var reboot = 0.0
  /// How often an hour a host dies: neither its BMC nor its DPU is heard of again.
  public var death = 0.0
  /// How many BMCs never answer, from the beginning.
  public var stuck = 0

  public init() {}

  public struct Mistake: Error, CustomStringConvertible {
    public let description: String
  }

  /// `name=value` in any order, separated by commas.
  public init(_ text: String) throws {
    for part in text.split(separator: ",") {
      let pair = part.split(separator: "=", maxSplits: 1)
      guard pair.count == 2, let value = Double(pair[1]), value >= 0, value.isFinite else {
        throw Mistake(description: "'\(part)' is not NAME=NUMBER")
      }
      func share() throws -> Double {
        guard value <= 1 else { throw Mistake(description: "\(pair[0]) is a share of the requests, from 0 to 1") }
        return value
      }
      switch pair[0] {
      case "hang": hang = try share()
      case "hang-seconds": hangSeconds = min(value, 86_400)
      case "error": error = try share()
      case "lost": lost = try share()
      case "reboot": reboot = min(value, 3600)
      case "death": death = min(value, 3600)
      case "stuck": stuck = Int(min(value, 1e6))
      default:
        throw Mistake(
          description: "'\(pair[0])' is no fault; there are hang, hang-seconds, error, lost, reboot, death and stuck")
      }
    }
  }

  /// What becomes of one request to a BMC.
  package enum Verdict: Sendable, Hashable {
    case answer
    case hang
    case fail
    /// It is carried out, and the answer is lost.
    case lose
  }

  package func verdict(_ random: inout some RandomNumberGenerator) -> Verdict {
    guard hang + error + lost > 0 else { return .answer }
    let share = Double.random(in: 0..<1, using: &random)
    if share < hang { return .hang }
    if share < hang + error { return .fail }
    if share < hang + error + lost { return .lose }
    return .answer
  }

  /// After how long something happens that happens `rate` times an hour; nil for never.
  package static func next(rate: Double, _ random: inout some RandomNumberGenerator) -> Duration? {
    guard rate > 0 else { return nil }
    // The time between events that do not know of each other is distributed exponentially.
    return .seconds(min(-log(1 - Double.random(in: 0..<1, using: &random)) / rate * 3600, 1e7))
  }
}
