/// One aspect of an object's observed state (`metav1.Condition`).
public struct Condition: Codable, Sendable, Hashable {
  public enum Status: String, Codable, Sendable, Hashable {
    case `true` = "True"
    case `false` = "False"
    case unknown = "Unknown"

    public init(_ value: Bool) { self = value ? .true : .false }
  }

  public var type: String
  public var status: Status
  /// A word in CamelCase for programs.
  public var reason: String
  /// A sentence for people.
  public var message: String
  /// When `status` changed last.
  public var lastTransitionTime: Timestamp
  public var observedGeneration: Int64?

  public init(
    type: String, status: Status, reason: String, message: String, lastTransitionTime: Timestamp = .now(),
    observedGeneration: Int64? = nil
  ) {
    self.type = type
    self.status = status
    self.reason = reason
    self.message = message
    self.lastTransitionTime = lastTransitionTime
    self.observedGeneration = observedGeneration
  }
}

extension [Condition] {
  /// The longest message that the API server takes (`metav1.Condition`), in bytes of UTF-8.
  public static var maximumMessageLength: Int { 32_768 }

  /// The condition of this type, if there is one.
  public func condition(_ type: String) -> Condition? { first { $0.type == type } }

  /// Whether the condition of this type is there and true.
  public func isTrue(_ type: String) -> Bool { condition(type)?.status == .true }

  /// Sets the condition of `type`, keeping the place of what is there and the time of its last transition unless the
  /// status changes. Returns whether anything changed: where nothing did, nothing needs to be written.
  @discardableResult
  public mutating func set(
    _ type: String, _ status: Condition.Status, reason: String, message: String, observedGeneration: Int64? = nil,
    now: Timestamp = .now()
  ) -> Bool {
    set(
      Condition(
        type: type, status: status, reason: reason, message: message, lastTransitionTime: now,
        observedGeneration: observedGeneration))
  }

  /// Sets a condition; its `lastTransitionTime` counts only where the status changes.
  @discardableResult
  public mutating func set(_ condition: Condition) -> Bool {
    var condition = condition
    condition.message = Self.cut(condition.message)
    guard let index = firstIndex(where: { $0.type == condition.type }) else {
      append(condition)
      return true
    }
    if self[index].status == condition.status { condition.lastTransitionTime = self[index].lastTransitionTime }
    guard self[index] != condition else { return false }
    self[index] = condition
    return true
  }

  /// As many whole characters as fit.
  private static func cut(_ message: String) -> String {
    guard message.utf8.count > maximumMessageLength else { return message }
    var length = 0
    let kept = message.prefix { character in
      length += character.utf8.count
      return length <= maximumMessageLength
    }
    return String(kept)
  }

  /// Removes the condition of `type`; returns whether there was one.
  @discardableResult
  public mutating func remove(_ type: String) -> Bool {
    let before = count
    removeAll { $0.type == type }
    return count != before
  }
}
