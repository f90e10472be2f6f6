package import DPU
package import GRPCCore
package import JSONRPC

/// The errors that the bridge answers with. Every one of them names the object or the field, and what to do about it.
extension RPCError {
  /// A field that must be there is not.
  package static func missing(_ field: String) -> RPCError {
    RPCError(code: .invalidArgument, message: "missing required field: \(field)")
  }

  /// A field has a value that cannot be.
  package static func invalid(_ field: String, _ value: String, _ reason: String) -> RPCError {
    RPCError(code: .invalidArgument, message: "\(field) '\(shortened(value))' \(reason)")
  }

  package static func notFound(_ name: String) -> RPCError {
    RPCError(code: .notFound, message: "\(name) does not exist")
  }

  package static func exists(_ name: String, _ difference: String) -> RPCError {
    RPCError(code: .alreadyExists, message: "\(name) is there already, \(difference)")
  }

  /// The target is not in the state that the call needs.
  package static func precondition(_ name: String, _ reason: String) -> RPCError {
    RPCError(code: .failedPrecondition, message: "\(name): \(reason)")
  }

  /// What the target cannot do.
  package static func unsupported(_ field: String, _ reason: String) -> RPCError {
    RPCError(code: .unimplemented, message: "\(field): \(reason)")
  }

  /// What SPDK's answer means for the caller. Its texts go along; they hold no secret, as its parameters are not in them.
  package init(_ error: JSONRPCError, _ operation: String) {
    let text = "\(operation): \(error.message)"
    switch error.code {
    case .unreachable, .closed:
      self.init(code: .unavailable, message: "\(text); the data plane is not there, try again")
    case .overloaded: self.init(code: .resourceExhausted, message: "\(text); try again later")
    case .timeout:
      self.init(
        code: .deadlineExceeded, message: "\(text); the call may have been carried out, look before trying again")
    case .malformed: self.init(code: .internalError, message: text)
    case .server(let code): self.init(code: RPCError.code(server: code, error.message), message: "\(text) (\(code))")
    }
  }

  private static func code(server code: Int, _ message: String) -> RPCError.Code {
    // Several of SPDK's methods give every error one code, and the system's text.
    switch (code, message) {
    case (-19, _), (-2, _), (_, "No such device"), (_, "No such file or directory"): .notFound
    case (-17, _), (_, "File exists"): .alreadyExists
    case (-12, _), (-28, _), (_, "No space left on device"), (_, "Cannot allocate memory"): .resourceExhausted
    case (-16, _), (-1, _), (_, "Device or resource busy"), (_, "Operation not permitted"): .failedPrecondition
    case (-13, _), (_, "Permission denied"): .permissionDenied
    case (-22, _), (-32602, _), (_, "Invalid argument"): .invalidArgument
    case (-32601, _): .unimplemented
    case (-110, _), (-5, _), (-111, _): .unavailable
    default: .internalError
    }
  }

  package init(_ error: DPUError) {
    let code: RPCError.Code =
      switch error.code {
      case .unavailable: .unavailable
      case .timeout: .deadlineExceeded
      case .conflict: .alreadyExists
      case .notFound: .notFound
      case .busy, .refused: .failedPrecondition
      case .unsupported: .unimplemented
      case .malformed: .internalError
      }
    self.init(code: code, message: "\(error)")
  }

  private static func shortened(_ text: String) -> String {
    text.utf8.count <= 200 ? text : String(text.prefix(200)) + "…"
  }
}
