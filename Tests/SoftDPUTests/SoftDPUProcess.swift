import JSONRPC
import TestSupport

/// A softdpu in a process of its own, which can be killed and started again with what it had.
struct SoftDPUProcess: Sendable {
  let directory: TemporaryDirectory
  let process: ChildProcess
  let client: JSONRPCClient

  /// Starts it, and waits until it answers.
  /// - Parameters:
  ///   - wrapper: a program that runs it, with its arguments.
  ///   - note: what a failure is told with.
  init(_ directory: TemporaryDirectory, wrapper: [String] = [], note: String = "") async throws {
    self.directory = directory
    let command =
      wrapper + [
        try TestEnvironment.builtProduct("ycloud"), "softdpu", "--rpc-socket", directory.file("rpc.sock"),
        "--vhost-dir", directory.file("bus"), "--state-dir", directory.file("state"), "--log-level", "error",
      ]
    let process = try ChildProcess(command[0], Array(command.dropFirst()))
    self.process = process
    let client = JSONRPCClient(path: directory.file("rpc.sock"))
    self.client = client
    try await eventually(within: .seconds(20), "\(note) softdpu answers: \(process.output)") {
      _ = try await client.call("spdk_get_version"); return true
    }
  }
}
