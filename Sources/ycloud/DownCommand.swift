import ArgumentParser
import LocalCloud
import Logging
import Telemetry

/// `ycloud down`: stops what `up` started.
struct DownCommand: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "down",
    abstract: "Stop the cloud on this machine.",
    discussion: """
      Stops all processes, servers included (for them it is a power failure), unmounts the pool and removes the \
      bridge. The data stay, and the next 'up' goes on with them, unless --purge is given. Works \
      also when the supervisor or parts of the cloud are dead.
      """)

  @OptionGroup var cloud: CloudDirectoryOption
  @Flag(help: "Remove the directory with all data too.") var purge = false

  func run() async throws {
    LoggingSetup.bootstrap(level: .warning)
    let progress = ProgressPrinter()
    try await LocalCloud(directory: try cloud.directory()) { progress($0) }.down(purge: purge)
  }
}
