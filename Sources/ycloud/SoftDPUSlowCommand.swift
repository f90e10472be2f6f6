import ArgumentParser
import Glibc
import JSON
import JSONRPC
import SoftDPU

/// `ycloud softdpu slow`: the last requests that took long.
struct SoftDPUSlowCommand: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "slow",
    abstract: "Show the last requests of a running softdpu that took longer than its threshold, the latest first.")

  @Option(help: "The unix socket of the JSON-RPC server.") var rpcSocket: String
  @Option(help: "How many requests to show.") var count: UInt32 = 40
  @Option(help: "First set the threshold, in microseconds; 0 is off.") var threshold: UInt64?
  @Flag(help: "Forget them afterwards.") var clear = false

  func run() async throws {
    let client = JSONRPCClient(path: rpcSocket)
    if let threshold {
      _ = try await client.call("bdev_set_slow_io", ["threshold_us": .integer(Int64(clamping: threshold))])
    }
    let answer = try await client.call("bdev_get_slow_io", ["max": .integer(Int64(count)), "clear": .bool(clear)])
    for line in SlowRequest.table(answer) { print(line) }
  }
}
