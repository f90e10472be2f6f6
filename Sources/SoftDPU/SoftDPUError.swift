import Glibc

/// Why the data plane refused, or could not start.
public struct SoftDPUError: Error, Sendable, CustomStringConvertible {
  public enum Code: Sendable, Hashable {
    /// The system refused; an error number of the kernel.
    case system(CInt)
    /// A parameter is outside of its bounds.
    case invalid
    /// The configuration on disk is not readable.
    case state
  }

  public let code: Code
  /// What was tried, with the name of the object.
  public let operation: String
  /// A message that a person can act on.
  public let message: String

  public init(code: Code, operation: String, message: String) {
    self.code = code
    self.operation = operation
    self.message = message
  }

  public var description: String { "\(operation): \(message)" }

  /// The error number, as SPDK reports it: positive.
  package var errorNumber: CInt {
    switch code {
    case .system(let number): number
    case .invalid: EINVAL
    case .state: EIO
    }
  }

  static func system(_ number: CInt, _ operation: String) -> SoftDPUError {
    SoftDPUError(code: .system(number), operation: operation, message: systemText(number))
  }
}

/// The system's text for an error number.
func systemText(_ number: CInt) -> String {
  var buffer = [CChar](repeating: 0, count: 128)
  // SAFETY: the buffer's length goes with it, and the text is read up to its first zero.
  guard unsafe strerror_r(number, &buffer, buffer.count) == 0 else { return "error \(number)" }
  return String(decoding: buffer.prefix { $0 != 0 }.map { UInt8(bitPattern: $0) }, as: UTF8.self)
}
