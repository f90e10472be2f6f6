import Glibc
import JSON
import JSONRPC
import TestSupport
import Testing

/// `ycloud softdpu` as a process, driven by SPDK's own client.
@Suite struct OfficialClientTests {
  final class Process: Sendable {
    let directory: TemporaryDirectory
    let child: ChildProcess
    private let client: String

    init() async throws {
      directory = try TemporaryDirectory()
      child = try ChildProcess(
        TestEnvironment.builtProduct("ycloud"),
        [
          "softdpu", "--rpc-socket", directory.file("rpc.sock"), "--vhost-dir", directory.file("bus"), "--state-dir",
          directory.file("state"), "--reactors", "2", "--log-level", "debug",
        ])
      let environment = try await ChildProcess.run(
        "\(TestEnvironment.repository)/scripts/test-venv.sh", within: .seconds(300))
      let path = environment.split(separator: "\n").last ?? ""
      client = "\(path)/bin/spdk-rpc"
      let socket = directory.file("rpc.sock")
      try await eventually("the socket") { access(socket, F_OK) == 0 }
    }

    /// Runs the client. What a method answered, or the error object that it printed.
    func call(_ arguments: String...) async throws -> Result<JSONValue, ResponseError> {
      let run = try ChildProcess(client, ["-s", directory.file("rpc.sock")] + arguments)
      let exit = try await run.waitForExit(within: .seconds(60))
      let output = run.output
      if exit == .code(0) {
        let text = output.isEmpty ? "null" : output
        return .success((try? JSONValue.parse(text)) ?? .string(String(text.dropLast())))
      }
      // The client prints its request, then "response:" and the error object.
      guard let start = output.lastIndex(of: "{"), let error = try? JSONValue.parse(String(output[start...])),
        let code = error["code"]?.intValue
      else { throw TestEnvironmentError("spdk-rpc: \(output)") }
      return .failure(ResponseError(code: code, message: error["message"]?.stringValue ?? ""))
    }
  }

  private func failure(_ code: Int, _ message: String) -> Result<JSONValue, ResponseError> {
    .failure(ResponseError(code: code, message: message))
  }

  @Test func worksWithSPDKsOwnClient() async throws {
    let process = try await Process()
    let file = process.directory.file("disk")
    close(open(file, O_RDWR | O_CREAT, 0o600))
    truncate(file, 1 << 20)

    let version = try await process.call("spdk_get_version").get()
    #expect(version["fields"]?["major"]?.intValue != nil)
    #expect(try await process.call("rpc_get_methods").get().arrayValue?.contains("bdev_lvol_snapshot") == true)

    #expect(try await process.call("bdev_aio_create", file, "disk", "512", "--fallocate") == .success("disk"))
    #expect(try await process.call("bdev_aio_create", file, "disk", "512") == failure(-17, "File exists"))
    #expect(
      try await process.call("bdev_aio_create", "\(file)-not", "other", "512")
        == failure(-2, "No such file or directory"))
    #expect(try await process.call("bdev_aio_create", file, "other", "1000") == failure(-22, "Invalid argument"))
    #expect(try await process.call("bdev_aio_create", file, "other") == failure(-22, "Invalid argument"))
    // SPDK would open it twice; two volumes on one file are a way to lose data.
    #expect(
      try await process.call("bdev_aio_create", file, "other", "512") == failure(-16, "Device or resource busy"))
    let volumes = try await process.call("bdev_get_bdevs", "-b", "disk").get()
    #expect(volumes[0]?["num_blocks"] == 2048)
    #expect(volumes[0]?["driver_specific"]?["aio"]?["filename"] == .string(file))
    #expect(volumes[0]?["supported_io_types"]?["unmap"] == true)
    #expect(try await process.call("bdev_get_bdevs", "-b", "none") == failure(-19, "No such device"))
    #expect(
      try await process.call("bdev_get_bdevs", "-b", "none", "-t", "100") == failure(-110, "Connection timed out"))

    #expect(try await process.call("vhost_create_blk_controller", "c0", "disk") == .success(.null))
    #expect(try await process.call("vhost_create_blk_controller", "c0", "disk") == failure(-32602, "File exists"))
    #expect(try await process.call("vhost_create_blk_controller", "c1", "none") == failure(-32602, "No such device"))
    #expect(
      try await process.call("vhost_create_blk_controller", "../c", "disk") == failure(-32602, "Invalid argument"))
    #expect(
      try await process.call("vhost_create_blk_controller", "-p", "c1", "disk") == failure(-32602, "Invalid argument"))
    let controllers = try await process.call("vhost_get_controllers", "-n", "c0").get()
    #expect(controllers[0]?["backend_specific"]?["block"]?["bdev"] == "disk")
    #expect(try await process.call("vhost_get_controllers", "-n", "c9") == failure(-32602, "No such device"))
    var status = stat()
    #expect(stat(process.directory.file("bus/c0"), &status) == 0 && status.st_mode & 0o777 == 0o600)
    #expect(stat(process.directory.file("rpc.sock"), &status) == 0 && status.st_mode & 0o777 == 0o600)

    #expect(try await process.call("bdev_aio_delete", "disk") == failure(-16, "Device or resource busy"))
    #expect(try await process.call("vhost_delete_controller", "c0") == .success(.null))
    #expect(access(process.directory.file("bus/c0"), F_OK) != 0)
    #expect(try await process.call("vhost_delete_controller", "c0") == failure(-32602, "No such device"))
    truncate(file, 2 << 20)
    #expect(try await process.call("bdev_aio_rescan", "disk") == .success(true))
    #expect(try await process.call("bdev_get_bdevs").get()[0]?["num_blocks"] == 4096)
    #expect(try await process.call("bdev_aio_rescan", "none") == failure(-19, "No such device"))
    #expect(try await process.call("bdev_aio_delete", "disk") == .success(.null))
    #expect(try await process.call("bdev_aio_delete", "disk") == failure(-19, "No such device"))
    #expect(try await process.call("bdev_get_bdevs") == .success([]))
  }

  @Test func refusesParametersAsSPDKDoes() async throws {
    let process = try await Process()
    let client = JSONRPCClient(path: process.directory.file("rpc.sock"))
    func error(_ method: String, _ params: JSONValue?) async -> JSONRPCError? {
      await #expect(throws: JSONRPCError.self) { try await client.call(method, params) }
    }
    let missing = await error("bdev_aio_create", ["name": "x"])
    #expect(missing?.code == .server(-32603) && missing?.message == "spdk_json_decode_object failed")
    #expect(await error("bdev_aio_delete", ["name": 5])?.code == .server(-32603))
    #expect(await error("bdev_aio_delete", ["name": "x", "more": 1])?.code == .server(-32603))
    #expect(await error("bdev_get_bdevs", [1])?.code == .server(-32603))
    #expect(await error("vhost_delete_controller", nil)?.code == .server(-32602))
    #expect(await error("spdk_get_version", ["x": 1])?.code == .server(-32602))
    #expect(await error("nothing", nil)?.code == .server(-32601))
  }

  @Test func usesNoProcessorTimeWhenIdleAndStopsWhenAsked() async throws {
    let process = try await Process()
    let client = JSONRPCClient(path: process.directory.file("rpc.sock"))
    _ = try await client.call("spdk_get_version")
    let before = try processorTicks(process.child.pid)
    // What is measured is a second without events; there is nothing to wait for.
    try await Task.sleep(for: .seconds(1))
    #expect(try processorTicks(process.child.pid) - before <= 1)
    process.child.signal(SIGTERM)
    #expect(try await process.child.waitForExit() == .code(0))
    #expect(access(process.directory.file("rpc.sock"), F_OK) != 0)
  }

  /// Hundredths of a second of processor time.
  private func processorTicks(_ pid: Int32) throws -> Int {
    guard let line = contentsOfFile("/proc/\(pid)/stat"), let end = line.lastIndex(of: ")") else {
      throw TestEnvironmentError("no process \(pid)")
    }
    let fields = line[end...].split(separator: " ")
    return (Int(fields[12]) ?? 0) + (Int(fields[13]) ?? 0)
  }
}
