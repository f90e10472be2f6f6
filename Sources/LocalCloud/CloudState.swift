/// What the supervisor knows, for `up`, `status` and people: `run/state.json`, written at every change.
public struct CloudState: Codable, Sendable, Hashable {
  public enum Phase: String, Codable, Sendable {
    /// Other parts must be ready first.
    case waiting
    case starting
    case ready
    /// It ended and is started again after a pause.
    case restarting
  }

  public struct Part: Codable, Sendable, Hashable {
    public var name: String
    public var phase: Phase
    public var pid: Int32?
    /// Seconds from its own start until it was ready.
    public var readyAfterSeconds: Double?
    /// How often it was started again by this supervisor.
    public var restarts: Int
    /// What happened last, such as how it ended.
    public var message: String?
  }

  public var supervisor: Int32
  /// Seconds since 1970.
  public var updatedAt: Double
  /// In the order in which they are started.
  public var parts: [Part]

  public var isReady: Bool {
    parts.allSatisfy { $0.phase == .ready }
  }
}
