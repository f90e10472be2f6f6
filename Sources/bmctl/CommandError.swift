package import Kubernetes

/// How `bmctl` ends; `bmctl --help` lists the same numbers.
package enum ExitReason: Int32, Sendable, Hashable, CaseIterable {
  case success = 0
  /// Anything that has no number of its own.
  case failure = 1
  /// The object does not exist.
  case notFound = 3
  /// The API server does not let this user do it.
  case refused = 4
  /// The object exists already, or is not in a state for this.
  case conflict = 5
  /// The time limit passed.
  case timedOut = 6
  /// The API server, or the machine, cannot be reached; also a kubeconfig that cannot be used.
  case unreachable = 7
  /// The disk image or another input file is not usable.
  case invalidInput = 8
  /// The command line is wrong (EX_USAGE).
  case usage = 64

  package var meaning: String {
    switch self {
    case .success: "done"
    case .failure: "failed"
    case .notFound: "the object does not exist"
    case .refused: "the API server does not let this user do it"
    case .conflict: "the object exists already or is not in a state for this"
    case .timedOut: "the time limit passed"
    case .unreachable: "the API server or the machine cannot be reached, or the kubeconfig cannot be used"
    case .invalidInput: "an image or another input file is not usable"
    case .usage: "the command line is wrong"
    }
  }
}

/// Why a command failed, and what the user can do.
package struct CommandError: Error, CustomStringConvertible {
  package var code: ExitReason
  package var operation: String
  package var message: String
  /// What to do about it.
  package var remedy: String?
  package var cause: (any Error)?

  package init(
    _ code: ExitReason, _ operation: String, _ message: String, remedy: String? = nil, cause: (any Error)? = nil
  ) {
    self.code = code
    self.operation = operation
    self.message = message
    self.remedy = remedy
    self.cause = cause
  }

  package var description: String {
    let text = "\(operation): \(message)"
    return remedy.map { "\(text)\n  \($0)" } ?? text
  }

  /// An error of the API server or of the way to it.
  package init(_ error: KubernetesError) {
    let code: ExitReason
    var remedy: String?
    switch error.code {
    case .notFound:
      code = .notFound
      if error.status?.details?.name == nil {
        remedy = "The API server does not know the resource: apply deploy/crds to the cluster first."
      }
    case .unauthorized:
      code = .refused
      remedy = "The credentials of the kubeconfig were not accepted; see --kubeconfig and --context."
    case .forbidden:
      code = .refused
      remedy = "Ask an administrator for a role that allows this; `kubectl auth can-i --list` shows what you have."
    case .alreadyExists, .conflict: code = .conflict
    case .timeout: code = .timedOut
    case .unavailable:
      code = .unreachable
      // What answers about an object is there.
      guard error.status?.details?.name == nil else { break }
      remedy = "Is the cluster up? For a local cloud: `ycloud up`, and KUBECONFIG=<its folder>/kubeconfig."
    case .configuration:
      code = .unreachable
      remedy = "Name a kubeconfig with --kubeconfig or KUBECONFIG; a local cloud has one in its folder (.ycloud/)."
    case .invalid, .badRequest: code = .invalidInput
    default: code = .failure
    }
    self.init(code, error.operation, error.message, remedy: remedy, cause: error)
  }
}
