import ArgumentParser
import Glibc
import Kubernetes

#if canImport(FoundationEssentials)
  import FoundationEssentials
#else
  import Foundation
#endif

@main
struct Main: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "bmctl",
    abstract: "Servers, machines and images of a YCloud.",
    discussion: """
      Which cluster is used is decided as kubectl does: --kubeconfig, then $KUBECONFIG, then ~/.kube/config.

      Exit codes: \(ExitReason.allCases.map { "\($0.rawValue) \($0.meaning)" }.joined(separator: "; ")).
      """,
    version: "0.1.0",
    groupedSubcommands: [
      CommandGroup(
        name: "Look",
        subcommands: [
          GetCommand.self, DescribeCommand.self, TreeCommand.self, EventsCommand.self, PlanCommand.self,
          TimelineCommand.self, TopCommand.self, WaitCommand.self,
        ]),
      CommandGroup(
        name: "Operate",
        subcommands: [
          StartCommand.self, StopCommand.self, RestartCommand.self, SoftRebootCommand.self, ResetCommand.self,
          MigrateCommand.self, DeleteCommand.self,
          ConsoleCommand.self, ScreenshotCommand.self, SSHCommand.self, SCPCommand.self, PortForwardCommand.self,
        ]),
      CommandGroup(
        name: "Change", subcommands: [DiskCommand.self, NICCommand.self]),
      CommandGroup(
        name: "Manage",
        subcommands: [
          SnapshotCommand.self, RestoreCommand.self, CloneCommand.self, ImageCommand.self, HostCommand.self,
          DoctorCommand.self, CompletionCommand.self,
        ]),
    ])

  static func main() async {
    // A closed pipe is an error of write(2), not the end of the program without a word.
    signal(SIGPIPE, SIG_IGN)
    do {
      var command = try parseAsRoot()
      if var command = command as? any AsyncParsableCommand {
        try await command.run()
      } else {
        try command.run()
      }
    } catch let error as CommandError {
      end(error)
    } catch let error as KubernetesError {
      end(CommandError(error))
    } catch is CancellationError {
      Glibc.exit(130)
    } catch {
      exit(withError: error)
    }
  }

  private static func end(_ error: CommandError) -> Never {
    let style = Style.detect(isTerminal: isatty(2) == 1, environment: ProcessInfo.processInfo.environment)
    let text = error.description.split(separator: "\n").map { TextWidth.printable(String($0)) }.joined(separator: "\n")
    Output.error("\(style.paint("error:", .red)) \(text)")
    Glibc.exit(error.code.rawValue)
  }
}
