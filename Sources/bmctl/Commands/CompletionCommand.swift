import ArgumentParser

struct CompletionCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "completion", abstract: "Print the completion script of a shell.",
    discussion: """
        bash:  bmctl completion bash > /etc/bash_completion.d/bmctl
        zsh:   bmctl completion zsh > "${fpath[1]}/_bmctl"
        fish:  bmctl completion fish > ~/.config/fish/completions/bmctl.fish
      """)

  enum Shell: String, CaseIterable, ExpressibleByArgument { case bash, zsh, fish }

  @Argument(help: "bash, zsh or fish.")
  var shell: Shell

  func run() {
    let target: CompletionShell =
      switch shell {
      case .bash: .bash
      case .zsh: .zsh
      case .fish: .fish
      }
    Output.line(Main.completionScript(for: target))
  }
}
