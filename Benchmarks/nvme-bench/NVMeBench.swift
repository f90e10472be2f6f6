import ArgumentParser
import BenchmarkSupport
import CLinux
import Glibc
import JSON
import JSONRPC
import Logging
import SoftDPU

/// Measures softdpu over NVMe/TCP, and with a thousand volumes.
@main
struct NVMeBench: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "nvme-bench", abstract: "Measures softdpu over NVMe/TCP, and with a thousand volumes.",
    subcommands: [Compare.self, Scale.self, EchoServer.self, Serve.self], defaultSubcommand: Compare.self)
}

/// The data plane alone, without the rest of `ycloud`, so that the comparison builds in a minute.
struct Serve: AsyncParsableCommand {
  static let configuration = CommandConfiguration(abstract: "Serves as ycloud softdpu does.", shouldDisplay: false)

  @Option var rpcSocket: String
  @Option var vhostDir: String
  @Option var stateDir: String
  @Option var reactors = 1

  func run() async throws {
    var logger = Logger(label: "softdpu")
    logger.logLevel = .error
    await
      (try SoftDPU(
        SoftDPU.Configuration(
          rpcSocket: rpcSocket, vhostDirectory: vhostDir, stateDirectory: stateDir, reactors: reactors), logger: logger))
      .run()
  }
}

struct EchoServer: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "echo", abstract: "Answers as the yardstick does.", shouldDisplay: false)

  @Option(help: "The file that gets the port's number.") var portFile: String

  func run() throws {
    try Echo.serve { port in
      guard let file = fopen("\(portFile).new", "w") else { return }
      fputs("\(port)\n", file)
      fclose(file)
      rename("\(portFile).new", portFile)
    }
  }
}

struct Compare: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    abstract: "4 KiB reads of a disk in memory over NVMe/TCP, against an echo of the same bytes.",
    discussion: """
      Our initiator, in this process, reads from our target, in another one, over one connection; then a client of \
      epoll asks a server of epoll for as many bytes. Both have their turns, several times over, so that what else the \
      machine does hits both; what is compared is the median of the turns' ratios. \
      The processor time is that of both processes.
      """)

  @Option(help: "A ycloud binary to measure; without it, the data plane that this program contains.") var ycloud:
    String?
  @Option(help: "Seconds of each turn.") var seconds = 0.5
  @Option(help: "Turns of each.") var turns = 15
  @Option(help: "Depths to measure.") var depths = [32, 1]

  private struct Figures {
    var rates: [Double] = []
    /// Microseconds of processor time for each request, of the server and of this process.
    var server: [Double] = []
    var client: [Double] = []

    var text: String {
      "\(Int(rates.median)) IOPS, CPU per I/O: \(rounded(server.median)) us server, \(rounded(client.median)) us client"
    }

    mutating func measure(_ child: Child, seconds: Double, _ load: () throws -> Int) rethrows {
      let (before, own) = (child.processorSeconds, ownProcessorSeconds())
      let count = Double(max(1, try load()))
      rates.append(count / seconds)
      server.append((child.processorSeconds - before) / count * 1e6)
      client.append((ownProcessorSeconds() - own) / count * 1e6)
    }
  }

  /// The median of the ratios of each turn.
  private func ratio(_ first: [Double], _ second: [Double]) -> Double {
    rounded(zip(first, second).map { $0 / $1 }.median)
  }

  func run() async throws {
    let remote = try Remote(ycloud)
    defer { remote.remove() }
    let portFile = "\(remote.directory)/echo.port"
    let echo = try Child(["/proc/self/exe", "echo", "--port-file", portFile])
    defer {
      echo.end()
      unlink(portFile)
    }
    try echo.wait(for: portFile)
    guard let file = fopen(portFile, "r") else { throw BenchmarkError("no echo") }
    var echoPort: CInt = 0
    withUnsafeMutablePointer(to: &echoPort) { pointer in
      withVaList([pointer]) { _ = vfscanf(file, "%d", $0) }
    }
    fclose(file)

    let port = try Remote.freePort()
    // 64 MiB: more than the processor's caches, as disks are.
    _ = try await remote.client.call("bdev_malloc_create", ["name": "m", "block_size": 512, "num_blocks": 131_072])
    _ = try await remote.client.call("nvmf_create_transport", ["trtype": "TCP"])
    _ = try await remote.client.call(
      "nvmf_create_subsystem", ["nqn": .string(Remote.nqn(0)), "allow_any_host": true])
    _ = try await remote.client.call(
      "nvmf_subsystem_add_ns", ["nqn": .string(Remote.nqn(0)), "namespace": ["bdev_name": "m"]])
    _ = try await remote.client.call(
      "nvmf_subsystem_add_listener", ["nqn": .string(Remote.nqn(0)), "listen_address": Remote.address(port)])
    try await remote.attach("r", subsystem: 0, port: port)

    for depth in depths {
      var nvme = Figures()
      var plain = Figures()
      // The first turn is for warmth.
      _ = try remote.load("rn1", depth: depth, seconds: 0.2)
      for _ in 0..<turns {
        try nvme.measure(remote.child, seconds: seconds) {
          try remote.load("rn1", depth: depth, seconds: seconds)
        }
        try plain.measure(echo, seconds: seconds) {
          try Echo.load(port: Int(echoPort), depth: depth, seconds: seconds)
        }
      }
      print("  NVMe/TCP read depth \(depth), softdpu: \(nvme.text)")
      print("  echo of the same bytes, depth \(depth): \(plain.text)")
      // With nothing but one request under way its latency is what lies between two of them.
      if depth == 1 {
        row(
          "NVMe/TCP depth 1, latency against the echo (ratio)", "\(ratio(plain.rates, nvme.rates))",
          "<= 1.3 (\(rounded(1e6 / nvme.rates.median)) us)")
      } else {
        row(
          "NVMe/TCP depth \(depth), IOPS against the echo (ratio)",
          "\(ratio(nvme.rates, plain.rates))", ">= 0.8")
      }
      row(
        "NVMe/TCP depth \(depth), CPU per I/O against the echo (ratio)",
        "\(ratio(zip(nvme.server, nvme.client).map(+), zip(plain.server, plain.client).map(+)))", "")
    }
  }
}
