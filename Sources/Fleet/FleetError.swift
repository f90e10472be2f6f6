/// Why a fleet could not be simulated.
public struct FleetError: Error, Sendable, CustomStringConvertible {
  public let operation: String
  /// What a person can do about it included.
  public let message: String

  package init(_ operation: String, _ message: String) {
    self.operation = operation
    self.message = message
  }

  public var description: String { "\(operation): \(message)" }
}
