public import Logging

/// What a simulated fleet is like.
public struct FleetConfiguration: Sendable {
  public var hosts: Int
  /// The hosts are called `<prefix>-0000` and so on.
  public var prefix = "sim"
  public var seed: UInt64 = 1
  /// How long a BMC takes for an answer.
  public var bmcDelay = TriangularDelay(constant: 0.02)
  /// How long each change on a DPU takes.
  public var dpuDelay = TriangularDelay(constant: 0.01)
  public var powerOnDelay = TriangularDelay(constant: 0.2)
  /// How long an operating system takes to shut down.
  public var shutdownDelay = TriangularDelay(constant: 1)
  /// From power on to the lease that a guest takes.
  public var guestDelay = TriangularDelay(constant: 1)
  public var faults = Faults()
  /// The port of the BMCs; 0 takes one that is free.
  public var bmcPort = 0
  /// The storage pool whose files the volumes are; nil takes them to be there.
  public var pool: String?
  /// `HOST:PORT` for metrics and health; empty for none.
  public var metricsAddress = ""
  /// Requests to the API server at the same time while hosts are registered and removed.
  public var registrationWorkers = 16
  /// Hosts whose DPU is worked on at the same time.
  public var workers = 64
  /// How long removed hosts may take to go.
  public var removalTime = 60.0
  /// Whether hosts and secrets stay at the end.
  public var keeps = false
  /// What single hosts have to say is logged from this level on.
  public var hostLogLevel = Logger.Level.warning
  /// How often progress is told; nil for never.
  public var progress: Duration?

  public init(hosts: Int) { self.hosts = hosts }

  public static let hostsMax = FleetListener.hostsMax

  package var pace: SimulatedServer.Pace { .init(powerOn: powerOnDelay, shutdown: shutdownDelay, guest: guestDelay) }

  package func name(of number: Int) -> String {
    let digits = "\(number)"
    return "\(prefix)-" + String(repeating: "0", count: max(0, 4 - digits.count)) + digits
  }
}
