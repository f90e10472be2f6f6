import ArgumentParser

@main
struct Main: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "ycloud",
    subcommands: [
      UpCommand.self, DownCommand.self, StatusCommand.self, SuperviseCommand.self,
      BMAPICommand.self,
      BMControllerCommand.self,
      BMHandlerCommand.self,
      CSIControllerCommand.self,
      OPIBridgeCommand.self, SoftDPUCommand.self,
      SoftHostCommand.self, SimulateCommand.self,
    ])
}
