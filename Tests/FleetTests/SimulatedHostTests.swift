import BMC
import DPU
import BareMetal
import Fleet
import Logging
import NIOPosix
import SoftHost
import Synchronization
import Telemetry
import TestSupport
import Testing

@Suite("The BMCs of a simulated fleet")
struct SimulatedHostTests {
  private static let logger = Logger(label: "test", factory: { _ in SwiftLogNoOpLogHandler() })
  private static let pace = SimulatedServer.Pace(
    powerOn: TriangularDelay(constant: 0.05), shutdown: TriangularDelay(constant: 0.05),
    guest: TriangularDelay(constant: 0.05))

  @Test("Each has an address of its own, accounts, power and an inventory, as our client reads them over HTTPS")
  func redfish() async throws {
    let changes = Atomic(0)
    let bmcs = (0..<3).map { number in
      SimulatedBMC(
        server: SimulatedServer(name: "sim-000\(number)", number: number, seed: 1, pace: Self.pace) {
          changes.add(1, ordering: .relaxed)
        },
        seed: 1, accounts: Accounts(username: "u", password: "p"), delay: TriangularDelay(constant: 0),
        faults: Faults(), metrics: SoftHostMetrics(MetricsRegistry()), logger: Self.logger)
    }
    let listener = try await FleetListener.open(
      hosts: 3, port: 0, tls: try await FleetCertificate.make(), group: MultiThreadedEventLoopGroup.singleton,
      respond: { number, request in try await bmcs[number].respond(to: request) })
    let pool = BMCClientPool(logger: Self.logger)
    func client(_ number: Int, password: String = "p") throws -> any BMC {
      let address = "redfish+https://\(FleetListener.address(of: number)):\(listener.port)/redfish/v1/Systems/1"
      return try pool.client(
        for: try BMCAddress(address), credentials: BMCCredentials(username: "u", password: password),
        trust: .insecureSkipVerify)
    }
    for number in 0..<3 {
      #expect(try await client(number).power() == .off)
      let inventory = try await client(number).inventory()
      #expect(inventory.serialNumber == "sim-000\(number)")
      #expect(inventory.nics.count == 2)
    }
    try await client(1).setPower(.on)
    try await eventually("the server is on") { try await client(1).power() == .on }
    #expect(try await client(2).power() == .off, "the others are not touched")
    #expect(changes.load(ordering: .relaxed) == 1)
    try await client(1).setPower(.forceOff)
    #expect(try await client(1).power() == .off)
    let wrong = await #expect(throws: BMCError.self) { try await client(0, password: "q").power() }
    #expect(wrong?.code == .unauthorized)
    try await pool.shutdown()
    await listener.close()
  }

  @Test("A BMC can answer with an error, lose an answer after it did as told, or be silent")
  func faults() async throws {
    func bmc(_ faults: String) throws -> (SimulatedBMC, SimulatedServer) {
      let server = SimulatedServer(name: "sim-0000", number: 0, seed: 1, pace: Self.pace, changed: {})
      let bmc = SimulatedBMC(
        server: server, seed: 1, accounts: Accounts(username: "u", password: "p"), delay: TriangularDelay(constant: 0),
        faults: try Faults(faults), metrics: SoftHostMetrics(MetricsRegistry()), logger: Self.logger)
      return (bmc, server)
    }
    let reset = RedfishRequest(
      method: "POST", path: "/redfish/v1/Systems/1/Actions/ComputerSystem.Reset",
      headers: ["authorization": "Basic dTpw"], body: Array(#"{"ResetType": "On"}"#.utf8))
    let (failing, untouched) = try bmc("error=1")
    guard case .reply(let reply) = try await failing.respond(to: reset) else { throw TimedOut("no answer") }
    #expect(reply.status == 500)
    #expect(await untouched.snapshot().power == .off, "nothing was done")
    let (losing, server) = try bmc("lost=1")
    guard case .hangUp = try await losing.respond(to: reset) else { throw TimedOut("an answer") }
    #expect(await server.snapshot().power == .poweringOn, "it was done")
    let (dead, _) = try bmc("")
    dead.die()
    await withTaskGroup(of: Bool.self) { group in
      group.addTask { (try? await dead.respond(to: reset)) != nil }
      group.addTask {
        try? await Task.sleep(for: .milliseconds(100))
        return false
      }
      #expect(await group.next() == false, "a dead one says nothing")
      group.cancelAll()
    }
  }

  @Test("A DPU that starts anew has lost what it showed, and is silent until then")
  func reboot() async throws {
    let dpu = SimulatedDPU(host: "h", seed: 1, delay: TriangularDelay(constant: 0), hasFiles: false)
    try await dpu.createVolume(name: "v", file: "/pool/v.img", readOnly: false)
    try await dpu.plug(function: "blk-00-v", volume: "v", readOnly: false)
    await #expect(throws: (any Error).self) { try await dpu.deleteVolume(name: "v") }
    #expect(try await dpu.functions().map(\.name) == ["blk-00-v"])
    dpu.reboot(silentFor: .milliseconds(50))
    #expect(!dpu.answers)
    await #expect(throws: (any Error).self) { try await dpu.functions() }
    try await eventually("it is back") { dpu.answers }
    #expect(try await dpu.functions().isEmpty)
    #expect(try await dpu.volumes().isEmpty)
  }
}
