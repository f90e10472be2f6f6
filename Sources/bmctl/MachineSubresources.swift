import IaaS
import JSON
import Kubernetes

/// What bm-api offers on machines (`subresources.iaas.yusur.io/v1`), where a cluster serves it.
struct MachineSubresources: Sendable {
  let connection: Connection

  private static let root = "/apis/\(Names.subresourceGroup)/v1"

  /// Whether the cluster serves the group now.
  func isServed() async throws -> Bool {
    do {
      _ = try await connection.client.request(method: "GET", path: Self.root)
      return true
    } catch let error as KubernetesError {
      switch error.code {
      case .notFound, .forbidden: return false
      case .unavailable where error.httpStatus != nil: return false
      default: throw error
      }
    }
  }

  /// The path of what a machine's name is followed by; nil for a name that no machine can have.
  static func path(_ verb: String, name: String, namespace: String) -> String? {
    guard isName(name), isName(namespace) else { return nil }
    return "\(root)/namespaces/\(namespace)/\(BareMetalMachine.definition.plural)/\(name)/\(verb)"
  }

  /// Whether a machine or a namespace can have this name, and nothing else can be meant by it in a path.
  static func isName(_ text: String) -> Bool {
    !text.isEmpty && text.utf8.count <= 253 && !text.hasPrefix(".") && !text.hasSuffix(".") && !text.hasPrefix("-")
      && text.utf8.allSatisfy {
        ($0 >= UInt8(ascii: "a") && $0 <= UInt8(ascii: "z")) || ($0 >= UInt8(ascii: "0") && $0 <= UInt8(ascii: "9"))
          || $0 == UInt8(ascii: "-") || $0 == UInt8(ascii: ".")
      }
  }

  private func path(_ verb: String, _ name: String) throws -> String {
    guard let path = Self.path(verb, name: name, namespace: connection.namespace) else {
      throw CommandError(.usage, verb, "'\(TextWidth.printable(name))' is no name of a machine")
    }
    return path
  }

  /// Asks for something to be done, and returns the words of the answer.
  func put(_ verb: String, _ name: String) async throws -> String {
    let answer = try await connection.client.request(method: "PUT", path: path(verb, name))
    return answer["message"]?.stringValue ?? "\(name): \(verb) done"
  }

  func get(_ verb: String, _ name: String, query: [(String, String)] = []) async throws -> JSONValue {
    try await connection.client.request(method: "GET", path: path(verb, name), query: query)
  }

  /// What is not JSON.
  func content(_ verb: String, _ name: String, limit: Int) async throws -> [UInt8] {
    try await connection.client.content(path: path(verb, name), limit: limit)
  }

  /// What to do where the group is not there.
  static func missing(_ operation: String) -> CommandError {
    CommandError(
      .unreachable, operation, "the cluster does not serve \(Names.subresourceGroup)/v1",
      remedy: "bm-api has to run and be registered: deploy/cluster/bm-api.yaml. bmctl doctor tells more.")
  }
}
