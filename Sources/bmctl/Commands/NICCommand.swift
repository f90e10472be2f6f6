import ArgumentParser
import JSON

struct NICCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "nic", abstract: "Network interfaces of machines, also while they run.",
    subcommands: [NICAddCommand.self, NICRemoveCommand.self])
}

struct NICAddCommand: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "add", abstract: "Add a network interface to a machine.",
    discussion: """
      A running guest finds a new card; that it uses it, for example by DHCP, is the guest's own configuration.

        bmctl nic add bm-01 eth1 --address 192.168.90.77 --wait
      """)

  @OptionGroup var options: ChangeOptions

  @Argument(help: "The machine.", completion: Completions.machines)
  var machine: String

  @Argument(help: "The interface's name.")
  var interface: String

  @Option(help: "Its MAC address; one is derived where not given.")
  var mac: String?

  @Option(help: "The IPv4 address that DHCP shall give it; any free one where not given.")
  var address: String?

  func run() async throws {
    var entry: JSONValue = ["name": .string(interface)]
    if let mac { entry["macAddress"] = .string(mac) }
    if let address { entry["address"] = .string(address) }
    let wanted = entry
    try await options.change(
      machine, done: "interface \(interface) is added", goal: .interfacePlugged(interface)
    ) { machine in
      try MachineEdit.adding(wanted, to: .interfaces, of: machine).map { ["spec": ["interfaces": .array($0)]] }
    }
  }
}

struct NICRemoveCommand: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "remove", abstract: "Remove a network interface from a machine.",
    discussion: "It has no network from then on; a running guest is asked to let go of the card.")

  @OptionGroup var options: ChangeOptions

  @Argument(help: "The machine.", completion: Completions.machines)
  var machine: String

  @Argument(help: "The interface's name.")
  var interface: String

  func run() async throws {
    try await options.change(
      machine, done: "interface \(interface) is removed", goal: .interfaceGone(interface)
    ) { machine in
      guard let interfaces = MachineEdit.removing(interface, from: .interfaces, of: machine) else {
        throw MachineEdit.missing(.interfaces, interface, of: machine)
      }
      return ["spec": ["interfaces": .array(interfaces)]]
    }
  }
}
