public import Kubernetes

/// What a reconciliation wants next.
public enum ReconcileResult: Sendable, Hashable {
  /// Nothing, until something changes.
  case done
  /// To look again after this time, whatever happens. Counts as a success.
  case requeue(after: Duration)
}

/// Brings the world nearer to what one object asks for.
///
/// It is called with the key alone and looks at the present state itself, so that it does not matter how many changes
/// led there. One key is never worked on twice at the same time. Throwing means: try again later, each time later.
public protocol Reconcile: Sendable {
  func reconcile(_ key: ObjectKey) async throws -> ReconcileResult
}

/// An error that trying again will not mend: the object waits for its next change.
public struct PermanentFailure: Error, CustomStringConvertible {
  public let cause: any Error

  public init(_ cause: any Error) { self.cause = cause }

  public var description: String { "\(cause)" }
}
