public import ArgumentParser
import Logging
public import SoftHost
import Telemetry
import WebServer

/// `ycloud softhost`: one simulated server with its BMC.
struct SoftHostCommand: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "softhost",
    abstract: "A simulated server: a chassis with a PCIe bus, a Redfish BMC and a serial console, around QEMU.",
    discussion: """
      The bus directory is the server's PCIe bus. A unix socket blk-NN-NAME in it is a vhost-user-blk disk, a file \
      nic-NN-NAME.json {"mac": "..", "tap": ".."} is a network card. What appears is plugged, what disappears is \
      unplugged; NN orders the disks for booting.

      QEMU goes on when this process ends, whatever ended it; the next start with the same state directory takes it \
      over. Its pid is in STATE-DIR/qemu.pid: ending that process cuts the server's power.
      """)

  @Option(help: "The server's name and serial number.") var name: String
  @Option(help: "The directory that is the PCIe bus.") var busDir: String
  @Option(help: "Where power state, QEMU's sockets and its pid are kept.") var stateDir: String
  @Option(help: "Where the BMC listens, HOST:PORT.") var bmcListen: String
  @Option(help: "The BMC's certificate chain (PEM). Without it the BMC speaks plain HTTP.") var bmcTlsCert: String?
  @Option(help: "The private key of the BMC's certificate (PEM).") var bmcTlsKey: String?
  @Option(help: "A file with the BMC's accounts, lines of user:password.") var bmcCredentialsFile: String
  @Option(help: "Seconds after which an unused BMC session ends.") var bmcSessionTimeout = 1800
  @Option(help: "A unix socket for readers and writers of the serial console.") var consoleSocket = ""
  @Option(help: "A file for the serial console's output; rotated at 8 MiB, one older file is kept.") var consoleLog = ""
  @Option(help: "Memory in MiB.") var memory = 512
  @Option(help: "Processors.") var cpus = 1
  @Option(help: "bios or uefi.") var firmware = ChassisConfiguration.Firmware.bios
  @Option(help: "kvm or tcg; without it, KVM where it works.") var accelerator: Acceleration?
  @Option(help: "PCIe ports: how many functions can be plugged at a time (1 to 24).") var slots = 12
  @Option(help: "Serve /metrics, /healthz and /readyz here, HOST:PORT; empty for not.") var metricsAddress = ""
  @Option(help: "trace, debug, info, notice, warning, error or critical.") var logLevel = Logger.Level.info

  func run() async throws {
    LoggingSetup.bootstrap(level: logLevel)
    var logger = Logger(label: "softhost")
    logger[metadataKey: "host"] = "\(name)"
    let running = logger
    let configuration = ChassisConfiguration(
      name: name, busDirectory: busDir, stateDirectory: stateDir, memoryMiB: memory, processors: cpus,
      firmware: firmware, acceleration: accelerator, ports: slots, consoleLog: consoleLog)
    let listen = try HostAndPort(bmcListen, flag: "--bmc-listen")
    var tls: TLSFiles?
    switch (bmcTlsCert, bmcTlsKey) {
    case (let certificate?, let key?): tls = TLSFiles(certificateChain: certificate, privateKey: key)
    case (nil, nil): break
    default: throw ValidationError("--bmc-tls-cert and --bmc-tls-key go together.")
    }
    let bmc = SoftHost.BMCSettings(
      host: listen.host, port: listen.port, tls: tls, credentialsFile: bmcCredentialsFile,
      sessionTimeout: .seconds(max(30, bmcSessionTimeout)))
    let registry = MetricsRegistry()
    let host = try SoftHost(
      configuration: configuration, bmc: bmc, consoleSocket: consoleSocket, registry: registry, logger: logger
    ) {
      running.notice("the BMC listens", metadata: ["address": "\(listen.host)", "port": "\($0)"])
    }
    var operations: WebServer?
    if !metricsAddress.isEmpty {
      let address = try HostAndPort(metricsAddress, flag: "--metrics-address")
      operations = WebServer(
        host: address.host, port: address.port, tls: nil,
        router: operationsRouter(registry: registry, isReady: { host.isReady }), logger: logger)
    }
    let servers = operations
    try await untilTerminated {
      try await withThrowingTaskGroup(of: Void.self) { group in
        group.addTask { try await host.run() }
        if let servers { group.addTask { try await servers.run() } }
        defer { group.cancelAll() }
        try await group.next()
      }
    }
  }
}

extension ChassisConfiguration.Firmware: ExpressibleByArgument {}
extension Acceleration: ExpressibleByArgument {}
