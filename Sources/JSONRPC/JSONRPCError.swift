public import JSON

/// Why a call over JSON-RPC, or the connection below it, failed.
public struct JSONRPCError: Error, Sendable, CustomStringConvertible {
  public enum Code: Sendable, Hashable {
    /// Nobody listens at the socket.
    case unreachable
    /// The connection ended before the answer came: the call may or may not have been carried out.
    case closed
    /// No answer in time: the call may or may not have been carried out.
    case timeout
    /// The peer sent something that is not JSON, or not JSON-RPC.
    case malformed
    /// More bytes or calls wait than the connection's limits allow.
    case overloaded
    /// The server refused the call, with this code.
    case server(Int)
  }

  public let code: Code
  /// What was tried: a method's name, or a verb of the connection.
  public let operation: String
  /// The server's text, or this side's explanation.
  public let message: String
  /// The `data` member of a server's error.
  public let data: JSONValue?

  public init(code: Code, operation: String, message: String, data: JSONValue? = nil) {
    self.code = code
    self.operation = operation
    self.message = message
    self.data = data
  }

  /// The error code of the server, where it was the server that refused.
  public var serverCode: Int? {
    if case .server(let code) = code { return code }
    return nil
  }

  public var description: String {
    switch code {
    case .server(let number): "\(operation): \(message) (code \(number))"
    default: "\(operation): \(message)"
    }
  }
}
