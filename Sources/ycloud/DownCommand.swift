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
      Asks the operating systems of the servers to shut down, for 20 s at most, stops all processes, unmounts the pool \
      and removes the bridge. The data stay, and the next 'up' goes on with them, unless --purge is given. With --force, \
      or where --purge removes the disks, it is a power failure for the servers. Works also when the supervisor or parts \
      of the cloud are dead.
      """)

  @OptionGroup var cloud: CloudDirectoryOption
  @Flag(help: "Remove the directory with all data too.") var purge = false
  @Flag(help: "Cut the servers' power at once.") var force = false

  func run() async throws {
    LoggingSetup.bootstrap(level: .warning)
    let progress = ProgressPrinter()
    try await LocalCloud(directory: try cloud.directory()) { progress($0) }.down(purge: purge, force: force)
  }
}
