import ArgumentParser
import BenchmarkSupport
import CLinux
import Glibc
import JSON
import JSONRPC
import Logging
import SoftDPU
import VhostFrontend

/// Drives vhost-user-blk targets with one front end, in turns, and compares them.
@main
struct VhostBench: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "vhost-bench", abstract: "Measures vhost-user-blk targets.",
    subcommands: [Compare.self, Queues.self, Serve.self],
    defaultSubcommand: Compare.self)
}

/// The data plane alone, without the rest of `ycloud`, so that the comparison builds in a minute.
struct Serve: AsyncParsableCommand {
  static let configuration = CommandConfiguration(abstract: "Serves as ycloud softdpu does.", shouldDisplay: false)

  @Option var rpcSocket: String
  @Option var vhostDir: String

  func run() async throws {
    var logger = Logger(label: "softdpu")
    logger.logLevel = .error
    let configuration = SoftDPU.Configuration(rpcSocket: rpcSocket, vhostDirectory: vhostDir)
    await (try SoftDPU(configuration, logger: logger)).run()
  }
}

struct Compare: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    abstract: "4 KiB random I/O over vhost-user-blk: ycloud softdpu against qemu-storage-daemon.",
    discussion: """
      Both targets serve the same file. The front end drives one and then the other, several times over, so that what \
      else the machine does hits both; the medians are compared.
      """)

  @Option(help: "A ycloud binary to measure; without it, the data plane that this program contains.") var ycloud:
    String?
  @Option(help: "Where the file is made; a tmpfs unless the disk is to be measured.") var directory = "/dev/shm"
  @Option(help: "Size of the file in MiB.") var size = 256
  @Option(help: "Requests in flight in each queue.") var depth = 32
  @Option(help: "Queues.") var queues = 1
  @Option(help: "Seconds of each turn.") var seconds = 2.0
  @Option(help: "Turns of each target.") var turns = 5
  @Flag(help: "Write instead of read.") var write = false
  @Flag(help: "Measure softdpu alone.") var alone = false

  func run() async throws {
    let work = "\(directory)/vhost-bench-\(getpid())"
    guard mkdir(work, 0o700) == 0 else { throw FrontendError("cannot make \(work)") }
    let targets = Targets(directory: work)
    defer { targets.remove() }
    try targets.makeFile(megabytes: size)
    var subjects = [try await targets.startSoftDPU(ycloud)]
    if !alone { subjects.append(try targets.startStorageDaemon(queues: queues)) }
    var results = [[Measurement]](repeating: [], count: subjects.count)
    for turn in 0..<turns {
      for (index, subject) in subjects.enumerated() {
        let measurement = try Measurement.take(
          subject, queues: queues, depth: depth, megabytes: size, write: write, seconds: seconds, seed: UInt64(turn))
        results[index].append(measurement)
        print("turn \(turn + 1) \(subject.name): \(measurement)")
      }
    }
    report(subjects, results)
  }

  private func report(_ subjects: [Targets.Subject], _ results: [[Measurement]]) {
    let medians = results.map { runs in
      Measurement(
        operationsPerSecond: runs.map(\.operationsPerSecond).median,
        microsecondsPerOperation: runs.map(\.microsecondsPerOperation).median)
    }
    print("4 KiB random \(write ? "write" : "read"), depth \(depth), \(queues) queue(s), file in \(directory)")
    for (subject, median) in zip(subjects, medians) { print("median \(subject.name): \(median)") }
    guard medians.count == 2 else { return }
    let speed = medians[0].operationsPerSecond / medians[1].operationsPerSecond
    let cost = medians[0].microsecondsPerOperation / medians[1].microsecondsPerOperation
    print("ratio: \(rounded(speed)) x the IOPS (at least 2), \(rounded(cost)) x the CPU per I/O (at most 0.5)")
  }
}

struct Queues: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    abstract: "4 KiB random reads over vhost-user-blk through several queues, against one.")

  @Option(help: "A ycloud binary to measure; without it, the data plane that this program contains.") var ycloud:
    String?
  @Option(help: "Queues.") var queues = 4
  @Option(help: "Requests in flight in each queue.") var depth = 32
  @Option(help: "Seconds of each turn.") var seconds = 1.0
  @Option(help: "Turns of each.") var turns = 7

  func run() async throws {
    let work = "/dev/shm/vhost-bench-\(getpid())"
    guard mkdir(work, 0o700) == 0 else { throw FrontendError("cannot make \(work)") }
    let targets = Targets(directory: work)
    defer { targets.remove() }
    try targets.makeFile(megabytes: 256)
    let subject = try await targets.startSoftDPU(ycloud)
    var results: [Int: [Measurement]] = [:]
    for turn in 0..<turns {
      for count in [1, queues] {
        results[count, default: []].append(
          try Measurement.take(
            subject, queues: count, depth: depth, megabytes: 256, write: false, seconds: seconds, seed: UInt64(turn)))
      }
    }
    let rates = results.mapValues { $0.map(\.operationsPerSecond).median }
    let costs = results.mapValues { rounded($0.map(\.microsecondsPerOperation).median) }
    for count in [1, queues] {
      print(
        "  vhost-user-blk, \(count) queue(s): \(Int(rates[count] ?? 0)) IOPS, \(costs[count] ?? 0) us of server CPU")
    }
    row(
      "vhost-user-blk, \(queues) queues against 1, IOPS (ratio)", "\(rounded((rates[queues] ?? 0) / (rates[1] ?? 1)))",
      ">= 1")
  }
}

struct Measurement: CustomStringConvertible {
  var operationsPerSecond: Double
  var microsecondsPerOperation: Double

  /// Drives a target for a time.
  static func take(
    _ subject: Targets.Subject, queues: Int, depth: Int, megabytes: Int, write: Bool, seconds: Double, seed: UInt64
  ) throws -> Measurement {
    let frontend = try VhostFrontend(path: subject.socket, queues: queues, queueSize: 128, slotLength: 4096)
    try frontend.start()
    defer { for queue in frontend.queues { _ = try? frontend.stop(queue) } }
    let load = Load(frontend: frontend, depth: depth, sectors: UInt64(megabytes) << 11, isWrite: write, seed: seed)
    try load.run(seconds: 0.2)
    let before = subject.child.processorSeconds
    let start = clinux_monotonic_nanoseconds()
    let count = try load.run(seconds: seconds)
    let elapsed = Double(clinux_monotonic_nanoseconds() - start) / 1e9
    let used = subject.child.processorSeconds - before
    try load.drain()
    return Measurement(
      operationsPerSecond: Double(count) / elapsed, microsecondsPerOperation: used / Double(count) * 1e6)
  }

  var description: String {
    "\(Int(operationsPerSecond)) IOPS, \(rounded(microsecondsPerOperation)) us of server CPU per I/O"
  }
}
