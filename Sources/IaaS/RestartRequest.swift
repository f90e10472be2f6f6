/// What a machine's annotation ``Names/restartAnnotation`` asks for: any new value is one restart.
///
/// `TOKEN` is a restart with bm-controller's own grace, `reset:TOKEN` one that cuts the power at once, and
/// `softreboot:TOKEN` one that leaves the guest ten minutes to shut down.
public struct RestartRequest: Sendable, Hashable, CustomStringConvertible {
  public enum Manner: String, Sendable, Hashable, CaseIterable {
    /// The guest is asked to shut down, and has bm-controller's grace for it.
    case restart
    /// The power is cut at once.
    case reset
    /// The guest is asked to shut down, and has at least ``RestartRequest/patience`` for it.
    case softreboot
  }

  /// How long a guest may take at a soft reboot.
  public static let patience: Duration = .seconds(600)

  public var manner: Manner
  /// Tells one request from the next.
  public var token: String

  public init(_ manner: Manner, token: String) {
    self.manner = manner
    self.token = token
  }

  /// Reads an annotation; whatever it says is a restart.
  public init(_ text: String) {
    for manner in [Manner.reset, .softreboot] where text.hasPrefix("\(manner.rawValue):") {
      self.init(manner, token: String(text.dropFirst(manner.rawValue.utf8.count + 1)))
      return
    }
    self.init(.restart, token: text)
  }

  /// The annotation's value.
  public var description: String { manner == .restart ? token : "\(manner.rawValue):\(token)" }

  /// How long the guest has, where it has `usual` at a restart.
  public func grace(usual: Duration) -> Duration {
    switch manner {
    case .restart: usual
    case .reset: .zero
    case .softreboot: max(usual, Self.patience)
    }
  }
}
