import Dispatch
import Glibc
import JSON
import JSONRPC
import Synchronization
import TestSupport
import Testing

/// Our initiator and our target in two network namespaces, and a network between them that breaks: never wrong data,
/// errors within the times that were asked for, and everything by itself again.
///
/// `YCLOUD_NETWORK_SEED` begins with another seed.
@Suite(.serialized) struct NetworkFaultTests {
  private static let nqn = "nqn.2026-11.io.yusur.test:network"
  private static let seed = getenv("YCLOUD_NETWORK_SEED").flatMap { UInt64(String(cString: $0)) } ?? 7

  /// Two namespaces, each with a cable to this one. They go with the value, and when the test process is killed.
  private final class Network: Sendable {
    let target: String
    let initiator: String
    private let number = Int.random(in: 1...250)
    private let tag = String(Int.random(in: 0..<100_000), radix: 36)
    // Addresses for benchmarks of networks (RFC 2544): nobody else's.
    var targetAddress: String { "198.18.\(number).2" }
    var nearAddress: String { "198.19.\(number).1" }

    init() async throws {
      try TestEnvironment.requireRoot(for: "making network namespaces")
      target = "ycT\(tag)"
      initiator = "ycI\(tag)"
      let script = """
        set -e
        for end in T:198.18 I:198.19; do
          side=${end%%:*} net=${end#*:}.\(number) name=yc${side}\(tag)
          ip netns add $name
          ip link add o$name type veth peer name i$name netns $name
          ip addr add $net.1/30 dev o$name
          ip link set o$name up
          ip -n $name addr add $net.2/30 dev i$name
          ip -n $name link set i$name up
          ip -n $name link set lo up
        done
        setsid sh -c '
          while kill -0 \(getpid()) 2>/dev/null && [ -e /run/netns/\(target) ]; do sleep 1; done
          ip netns del \(target); ip netns del \(initiator)' </dev/null >/dev/null 2>&1 &
        """
      try await ChildProcess.run("sh", ["-c", script])
    }

    deinit {
      if let process = try? ChildProcess("sh", ["-c", "ip netns del \(target); ip netns del \(initiator)"]) {
        var status: Int32 = 0
        waitpid(process.pid, &status, 0)
      }
    }

    /// Pulls the initiator's cable, or puts it back.
    func setCable(_ isPlugged: Bool) async throws {
      try await ChildProcess.run("ip", ["link", "set", "o\(initiator)", isPlugged ? "up" : "down"])
    }

    /// What the initiator's sockets still have to send after their program has closed them.
    func leftovers() async throws -> String {
      try await ChildProcess.run(
        "ip", ["netns", "exec", initiator, "ss", "-Htan", "state", "fin-wait-1", "state", "last-ack"])
    }
  }

  private struct Setup {
    let network: Network
    let target: SoftDPUProcess
    let initiator: SoftDPUProcess
    let relay: FaultyRelay

    /// A target with a memory disk, the relay, and an initiator that shows the disk over NBD.
    init(_ options: JSONValue, faults: FaultyRelay.Faults = FaultyRelay.Faults()) async throws {
      network = try await Network()
      target = try await SoftDPUProcess(
        try TemporaryDirectory(), wrapper: ["ip", "netns", "exec", network.target])
      initiator = try await SoftDPUProcess(
        try TemporaryDirectory(), wrapper: ["ip", "netns", "exec", network.initiator])
      let client = target.client
      _ = try await client.call("bdev_malloc_create", ["name": "m", "block_size": 512, "num_blocks": 8192])
      _ = try await client.call("nvmf_create_transport", ["trtype": "TCP"])
      _ = try await client.call("nvmf_create_subsystem", ["nqn": .string(nqn), "allow_any_host": true])
      _ = try await client.call("nvmf_subsystem_add_ns", ["nqn": .string(nqn), "namespace": ["bdev_name": "m"]])
      let place: JSONValue = ["trtype": "TCP", "adrfam": "IPv4", "traddr": .string(network.targetAddress)]
      var address = place
      address["trsvcid"] = "4420"
      _ = try await client.call("nvmf_subsystem_add_listener", ["nqn": .string(nqn), "listen_address": address])
      relay = try FaultyRelay(
        listen: (network.nearAddress, 4420), connect: (network.targetAddress, 4420), seed: NetworkFaultTests.seed,
        faults: faults)
      var parameters = address
      parameters["name"] = "r"
      parameters["subnqn"] = .string(nqn)
      parameters["traddr"] = .string(network.nearAddress)
      for (key, value) in options.objectValue ?? [:] { parameters[key] = value }
      _ = try await initiator.client.call("bdev_nvme_attach_controller", parameters)
      _ = try await initiator.client.call(
        "nbd_start_disk", ["bdev_name": "rn1", "nbd_device": .string(initiator.directory.file("r.sock"))])
    }

    func stop() {
      relay.stop()
      initiator.process.kill()
      target.process.kill()
    }

    func state() async throws -> String? {
      try await initiator.client.call("bdev_nvme_get_controllers")[0]?["ctrlrs"]?[0]?["state"]?.stringValue
    }
  }

  /// Writes and reads a part of the disk of its own at random, and knows what every block may hold.
  private final class Worker: Sendable {
    struct Report: Sendable {
      var writes = 0
      var reads = 0
      var errors = 0
      var slowest: Duration = .zero
      var wrong: [String] = []
    }

    private let report = Mutex(Report())
    private let isStopping = Mutex(false)
    private let ended = DispatchSemaphore(value: 0)
    private static let blocks = 64
    private static let blockLength = 4096

    var current: Report { report.withLock { $0 } }

    init(_ socket: String, number: Int) {
      DispatchQueue(label: "worker").async { [self] in
        do { try work(socket, number) } catch { report.withLock { $0.wrong.append("\(error)") } }
        ended.signal()
      }
    }

    func stop() -> Report {
      isStopping.withLock { $0 = true }
      ended.wait()
      return current
    }

    private func work(_ socket: String, _ number: Int) throws {
      let client = try NBDClient(socket, seconds: 60)
      var random = SeededGenerator(seed: NetworkFaultTests.seed &+ UInt64(number))
      // What each block may hold: several, where a write failed.
      var allowed = [Set<UInt64>](repeating: [0], count: Worker.blocks)
      let base = UInt64(number * Worker.blocks * Worker.blockLength)
      let clock = ContinuousClock()
      while !isStopping.withLock({ $0 }) {
        let first = Int.random(in: 0..<Worker.blocks, using: &random)
        let count = Int.random(in: 1...min(48, Worker.blocks - first), using: &random)
        let offset = base + UInt64(first * Worker.blockLength)
        let isWrite = Int.random(in: 0..<5, using: &random) > 1
        let stamp = random.next()
        let start = clock.now
        if isWrite {
          let content = (0..<count * Worker.blockLength / 8).flatMap { _ in
            (0..<8).map { UInt8(truncatingIfNeeded: stamp >> ($0 * 8)) }
          }
          let error = try client.perform(.write, at: offset, content).error
          for block in first..<first + count {
            if error == 0 { allowed[block] = [stamp] } else { allowed[block].insert(stamp) }
          }
          report.withLock { $0.writes += error == 0 ? 1 : 0 }
          note(error, clock.now - start)
        } else {
          let (error, data) = try client.perform(.read, at: offset, length: count * Worker.blockLength)
          if error == 0 { check(data, first, &allowed) }
          report.withLock { $0.reads += error == 0 ? 1 : 0 }
          note(error, clock.now - start)
        }
      }
    }

    private func note(_ error: UInt32, _ time: Duration) {
      report.withLock { report in
        report.errors += error == 0 ? 0 : 1
        report.slowest = max(report.slowest, time)
        if error != 0, error != 5 { report.wrong.append("error \(error)") }
      }
    }

    private func check(_ data: [UInt8], _ first: Int, _ allowed: inout [Set<UInt64>]) {
      for index in 0..<data.count / Worker.blockLength {
        let block = data[index * Worker.blockLength..<(index + 1) * Worker.blockLength]
        let words = block.withUnsafeBytes { Set($0.bindMemory(to: UInt64.self)) }
        guard words.count == 1, let word = words.first, allowed[first + index].contains(word) else {
          let text = "block \(first + index) has \(words.prefix(3)), not one of \(allowed[first + index])"
          return report.withLock { $0.wrong.append(text) }
        }
        // What was read is what stays.
        allowed[first + index] = [word]
      }
    }
  }

  @Test(.timeLimit(.minutes(4))) func aBadNetworkCostsTimeAndNeverData() async throws {
    let setup = try await Setup([
      "hdgst": true, "ddgst": true, "num_io_queues": 2, "ctrlr_loss_timeout_sec": 120, "reconnect_delay_sec": 1,
      "fast_io_fail_timeout_sec": 3,
    ])
    defer { setup.stop() }
    let workers = (0..<3).map { Worker(setup.initiator.directory.file("r.sock"), number: $0) }
    func progress() -> Int { workers.reduce(0) { $0 + $1.current.writes } }

    // Late, in odd pieces, with wrong bytes, and cut off.
    for faults in [
      FaultyRelay.Faults(delayMilliseconds: 30), FaultyRelay.Faults(corruptOneIn: 300),
      FaultyRelay.Faults(delayMilliseconds: 10, corruptOneIn: 500, cutOneIn: 500),
    ] {
      setup.relay.faults = faults
      let (before, tally) = (progress(), setup.relay.tally)
      try await eventually(within: .seconds(40), "\(faults)") {
        let now = setup.relay.tally
        return progress() > before + 20 && (faults.corruptOneIn == 0 || now.corrupted > tally.corrupted + 3)
          && (faults.cutOneIn == 0 || now.cut > tally.cut + 3)
      }
      #expect(workers.allSatisfy { $0.current.wrong.isEmpty }, "seed \(Self.seed): \(workers.map(\.current.wrong))")
    }
    setup.relay.faults = FaultyRelay.Faults()
    try await eventually(within: .seconds(20), "it is connected again") { try await setup.state() == "enabled" }

    // The cable is out: requests fail within the time that was asked for, after the loss has been noticed.
    let errors = workers.map(\.current.errors)
    try await setup.network.setCable(false)
    // A keep-alive may have been answered just now; the next is sent within 5 s, and missed within 5 more.
    try await eventually(within: .seconds(20), "requests fail") {
      zip(workers, errors).allSatisfy { $0.current.errors > $1 }
    }
    // What was not sent must not be sent later, over newer data.
    #expect(try await setup.network.leftovers().isEmpty)
    try await setup.network.setCable(true)
    try await eventually(within: .seconds(20), "it is connected again") { try await setup.state() == "enabled" }
    let before = progress()
    try await eventually(within: .seconds(20), "it goes on") { progress() > before + 20 }

    let reports = workers.map { $0.stop() }
    #expect(reports.allSatisfy { $0.wrong.isEmpty }, "seed \(Self.seed): \(reports.map(\.wrong))")
    // 10 s until the loss is noticed, 3 s until requests fail, and as much again for a machine that is busy.
    #expect(reports.allSatisfy { $0.slowest < .seconds(26) }, "\(reports.map(\.slowest))")
    print("network faults: \(setup.relay.tally); \(reports.map { "\($0.writes) writes, \($0.errors) errors" })")
  }

  /// A target may answer in any order, and send the data of several commands in turns.
  @Test(.timeLimit(.minutes(2))) func answersMayComeInAnyOrder() async throws {
    let setup = try await Setup(
      ["hdgst": true, "ddgst": true], faults: FaultyRelay.Faults(delayMilliseconds: 10, reorderOneIn: 2))
    defer { setup.stop() }
    let workers = (0..<8).map { Worker(setup.initiator.directory.file("r.sock"), number: $0) }
    try await eventually(within: .seconds(60), "answers change places: \(setup.relay.tally)") {
      setup.relay.tally.reordered > 100 && workers.allSatisfy { $0.current.writes > 20 && $0.current.reads > 10 }
    }
    let reports = workers.map { $0.stop() }
    #expect(reports.allSatisfy { $0.wrong.isEmpty && $0.errors == 0 }, "seed \(Self.seed): \(reports)")
    print("answers in another order: \(setup.relay.tally)")
  }

  @Test(.timeLimit(.minutes(2))) func aControllerThatIsLostIsNotTriedForEver() async throws {
    let setup = try await Setup(["ctrlr_loss_timeout_sec": 3, "reconnect_delay_sec": 1])
    defer { setup.stop() }
    let client = try NBDClient(setup.initiator.directory.file("r.sock"))
    #expect(try client.perform(.write, [UInt8](repeating: 1, count: 4096)).error == 0)
    setup.relay.stop()
    // Until the time is over it waits, then it fails, and from then on at once.
    #expect(try client.perform(.read, length: 4096).error == 5)
    try await eventually(within: .seconds(20), "it is given up") { try await setup.state() == "failed" }
    #expect(try client.perform(.read, length: 4096).error == 5)
  }
}
