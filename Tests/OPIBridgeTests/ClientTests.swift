import DPU
import GRPCCore
import Glibc
import JSON
import JSONRPC
import OPIBridge
import SoftDPU
import TestSupport
import Testing

/// `ycloud opi-bridge` as a process: with bare-metal handling's client, and with other people's.
@Suite struct ClientTests {
  private final class Process: Sendable {
    let fixture: Fixture
    let child: ChildProcess

    init(_ arguments: [String] = []) async throws {
      let fixture = try Fixture()
      self.fixture = fixture
      child = try Self.start(fixture, arguments)
      let socket = fixture.directory.file("opi")
      if arguments.isEmpty { try await eventually("the socket") { access(socket, F_OK) == 0 } }
    }

    static func start(_ fixture: Fixture, _ arguments: [String] = []) throws -> ChildProcess {
      let grpc = arguments.isEmpty ? ["--grpc", "unix:\(fixture.directory.file("opi"))"] : arguments
      return try ChildProcess(
        TestEnvironment.builtProduct("ycloud"),
        [
          "opi-bridge", "--spdk", fixture.directory.file("rpc"), "--state-dir", fixture.directory.file("records"),
          "--log-level", "debug",
        ] + grpc)
    }
  }

  private func python() async throws -> String {
    let printed = try await ChildProcess.run(
      "\(TestEnvironment.repository)/scripts/test-venv.sh", within: .seconds(300))
    return "\(printed.split(separator: "\n").last ?? "")/bin/python3"
  }

  private static let scripts = "\(TestEnvironment.repository)/Tests/OPIBridgeTests/Python"

  private func withClient<Value: Sendable>(
    _ address: OPIClient.Address, _ body: @Sendable (OPIClient) async throws -> Value
  ) async throws -> Value {
    let client = try OPIClient(address, timeout: .seconds(10))
    return try await withThrowingTaskGroup(of: Void.self) { group in
      group.addTask { try await client.run() }
      defer { group.cancelAll() }
      return try await body(client)
    }
  }

  private func dpuCode(_ body: () async throws -> Void) async -> DPUError.Code? {
    await #expect(throws: DPUError.self) { try await body() }?.code
  }

  @Test func bareMetalHandlingGetsAndLosesADisk() async throws {
    let process = try await Process()
    let file = process.fixture.file("disk")
    try await withClient(.unix(process.fixture.directory.file("opi"))) { dpu in
      #expect(try await dpu.version() == SoftDPU.version)
      for _ in 0..<2 { try await dpu.createVolume(name: "v", file: file, readOnly: false) }
      #expect(
        try await dpu.volumes() == [
          BlockVolume(name: "v", file: file, blockSize: 512, blockCount: 2048, readOnly: false)
        ])
      for _ in 0..<2 { try await dpu.plug(function: "blk-00-v", volume: "v", readOnly: false) }
      #expect(try await dpu.functions() == [BlockFunction(name: "blk-00-v", volume: "v", readOnly: false)])
      truncate(file, 2 << 20)
      for _ in 0..<2 { try await dpu.rescanVolume(name: "v") }
      #expect(try await dpu.volumes().first?.capacity == 2 << 20)

      #expect(await dpuCode { try await dpu.createVolume(name: "v", file: file, readOnly: true) } == .conflict)
      #expect(await dpuCode { try await dpu.createVolume(name: "w", file: "\(file)-not", readOnly: true) } == .notFound)
      #expect(await dpuCode { try await dpu.plug(function: "f", volume: "none", readOnly: true) } == .notFound)
      #expect(await dpuCode { try await dpu.deleteVolume(name: "v") } == .busy)
      // Limits are set, changed and lifted, and read back from the data plane.
      for limits in [VolumeLimits(iops: 5000, readBandwidth: 7), VolumeLimits(bandwidth: 100), VolumeLimits()] {
        for _ in 0..<2 { try await dpu.limitVolume(name: "v", limits) }
        #expect(try await dpu.volumes().first?.limits == limits)
        let direct = SPDKClient(socket: process.fixture.directory.file("rpc"))
        #expect(try await direct.volumes().first?.limits == limits)
      }
      try await dpu.limitVolume(name: "v", VolumeLimits(writeBandwidth: 3))
      #expect(await dpuCode { try await dpu.rescanVolume(name: "none") } == .notFound)

      for _ in 0..<2 { try await dpu.unplug(function: "blk-00-v") }
      #expect(try await dpu.functions() == [])
      for _ in 0..<2 { try await dpu.deleteVolume(name: "v") }
      #expect(try await dpu.volumes() == [])
      #expect(try process.fixture.names("records") == [])
    }
  }

  /// Disks that were plugged before there was a bridge are taken over as they are.
  @Test func takesOverWhatWasMadeWithoutIt() async throws {
    let process = try await Process()
    let file = process.fixture.file("disk")
    let direct = SPDKClient(socket: process.fixture.directory.file("rpc"))
    try await direct.createVolume(name: "v", file: file, readOnly: true)
    try await direct.plug(function: "blk-00-v", volume: "v", readOnly: true)
    try await withClient(.unix(process.fixture.directory.file("opi"))) { dpu in
      #expect(try await dpu.functions() == [BlockFunction(name: "blk-00-v", volume: "v", readOnly: true)])
      try await dpu.createVolume(name: "v", file: file, readOnly: true)
      try await dpu.plug(function: "blk-00-v", volume: "v", readOnly: true)
      #expect(try process.fixture.names("records").count == 2)
      try await dpu.unplug(function: "blk-00-v")
      try await dpu.deleteVolume(name: "v")
    }
    #expect(try await direct.volumes() == [])
  }

  @Test func theClientFindsABridgeAndADataPlaneThatComeBack() async throws {
    let process = try await Process()
    let file = process.fixture.file("disk")
    let socket = process.fixture.directory.file("opi")
    try await withClient(.unix(socket)) { dpu in
      try await dpu.createVolume(name: "v", file: file, readOnly: false)
      try await dpu.plug(function: "f", volume: "v", readOnly: false)
      process.child.kill()
      _ = try await process.child.waitForExit()
      #expect(await dpuCode { _ = try await dpu.version() } == .unavailable)
      let second = try Process.start(process.fixture)
      try await eventually("the bridge to answer") { (try? await dpu.functions().count) == 1 }

      // The data plane comes back with nothing, and the bridge sees to it by itself.
      process.fixture.stopDataPlane()
      #expect(await dpuCode { _ = try await dpu.functions() } == .unavailable)
      try process.fixture.startDataPlane()
      let direct = SPDKClient(socket: process.fixture.directory.file("rpc"))
      try await eventually("the disk to be back") { try await direct.functions().map(\.name) == ["f"] }
      _ = second
    }
  }

  // MARK: Other people's clients

  @Test func pydpuAndItsStubsWork() async throws {
    let process = try await Process()
    let run = try ChildProcess(
      try await python(),
      [
        "\(Self.scripts)/opi.py", "unix:\(process.fixture.directory.file("opi"))", process.fixture.file("disk"),
        "\(try TestEnvironment.freePort())",
      ])
    let exit = try await run.waitForExit(within: .seconds(120))
    #expect(exit == .code(0), "\(run.output)\n\(process.child.output.suffix(3000))")
    #expect(run.output.contains("all of it works"))
  }

  /// Our descriptions of the messages are those that everybody else has.
  @Test func messagesAndNumbersAreThoseOfTheStorageAPI() async throws {
    let run = try ChildProcess(
      try await python(), ["\(Self.scripts)/compare_descriptors.py", "\(TestEnvironment.repository)/protos"])
    let exit = try await run.waitForExit(within: .seconds(60))
    #expect(exit == .code(0), "\(run.output)")
    #expect(run.output.contains("methods are the same"))
  }

  @Test func overANetworkItTakesClientsWithACertificateOnly() async throws {
    let certificates = try TemporaryDirectory()
    let make = """
      set -e
      cd \(certificates.path)
      for authority in right wrong; do
        openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj "/CN=$authority" \
          -keyout $authority.key -out $authority.crt
        for name in server client; do
          openssl req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj "/CN=$name" \
            -keyout $authority-$name.key -out $name.csr
          printf 'subjectAltName=IP:127.0.0.1,DNS:localhost\n' > names
          openssl x509 -req -in $name.csr -CA $authority.crt -CAkey $authority.key -CAcreateserial -days 2 \
            -extfile names -out $authority-$name.crt
        done
      done
      """
    try await ChildProcess.run("sh", ["-c", make])
    let port = try TestEnvironment.freePort()
    let process = try await Process([
      "--grpc", "127.0.0.1:\(port)", "--tls-certificate", certificates.file("right-server.crt"), "--tls-key",
      certificates.file("right-server.key"), "--tls-client-ca", certificates.file("right.crt"),
    ])
    func address(client: String, trusting authority: String) -> OPIClient.Address {
      .tls(
        host: "localhost", port: port, certificate: certificates.file("\(client)-client.crt"),
        key: certificates.file("\(client)-client.key"), authority: certificates.file("\(authority).crt"))
    }
    try await withClient(address(client: "right", trusting: "right")) { dpu in
      try await eventually("the bridge to answer") { (try? await dpu.version()) == SoftDPU.version }
    }
    for (client, authority) in [("wrong", "right"), ("right", "wrong")] {
      try await withClient(address(client: client, trusting: authority)) { dpu in
        #expect(await dpuCode { _ = try await dpu.version() } == .unavailable)
      }
    }
    // Without TLS nothing is answered.
    let plain = try ChildProcess(
      try await python(),
      [
        "-c",
        """
        import grpc
        from pydpu.proto.v1 import frontend_nvme_pb2 as m, frontend_nvme_pb2_grpc as g
        try:
            g.FrontendNvmeServiceStub(grpc.insecure_channel("127.0.0.1:\(port)")).ListNvmeSubsystems(
                m.ListNvmeSubsystemsRequest(), timeout=5)
            print("answered")
        except grpc.RpcError as error:
            print("refused", error.code())
        """,
      ])
    _ = try await plain.waitForExit(within: .seconds(30))
    #expect(plain.output.contains("refused"))
    #expect(process.child.output.contains("PRIVATE KEY") == false)
  }
}
