import ArgumentParser
import CLinux
import Glibc
import JSON
import JSONRPC
import SoftDPU

/// `ycloud softdpu top`: what the disks of a data plane do, again and again.
struct SoftDPUTopCommand: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "top", abstract: "Show what the disks of a running data plane do: SPDK's or softdpu's.")

  @Option(help: "The unix socket of the JSON-RPC server.") var rpcSocket: String
  @Option(help: "Seconds between two looks, 0.1 to 3600.") var interval = 1.0
  @Option(help: "How many times to show; 0 is until it is interrupted.") var count = 0

  func validate() throws {
    guard (0.1...3600).contains(interval) else {
      throw ValidationError("--interval: 0.1 to 3600 seconds, not \(interval)")
    }
    guard count >= 0 else { throw ValidationError("--count: 0 or more, not \(count)") }
  }

  func run() async throws {
    let client = JSONRPCClient(path: rpcSocket)
    let isTerminal = isatty(1) != 0
    var old = try await client.call("bdev_get_iostat")
    var shown = 0
    while count == 0 || shown < count {
      try await Task.sleep(for: .seconds(interval))
      let new = try await client.call("bdev_get_iostat")
      let lines = DeviceActivity.table(DeviceActivity.between(old, new), rows: isTerminal ? terminalRows - 1 : .max)
      // A terminal shows the last table only: home, the table, nothing below it.
      let text =
        isTerminal
        ? "\u{1B}[H" + lines.map { $0 + "\u{1B}[K\n" }.joined() + "\u{1B}[J" : lines.joined(separator: "\n") + "\n"
      print(text, terminator: "")
      fflush(nil)
      old = new
      shown += 1
    }
  }

  private var terminalRows: Int {
    var rows: UInt16 = 0
    var columns: UInt16 = 0
    guard clinux_terminal_size(1, &rows, &columns) == 0, rows > 2 else { return 24 }
    return Int(rows)
  }
}
