import BenchmarkSupport
import Glibc
import JSON
import JSONRPC
import Logging
import SoftDPU

/// A data plane in a process of its own, which is measured, and one in this process, which uses it.
final class Remote: Sendable {
  let directory: String
  let child: Child
  let client: JSONRPCClient
  private let initiator: SoftDPU
  let host: JSONRPCClient

  /// - Parameter program: a `ycloud`; without one, the data plane that this program contains.
  init(_ program: String?, reactors: Int = 1) throws {
    var template = Array("/tmp/ycloud-nvme-bench.XXXXXX".utf8CString)
    guard mkdtemp(&template) != nil else { throw BenchmarkError("cannot make a directory in /tmp") }
    let directory = String(decoding: template.dropLast().map { UInt8(bitPattern: $0) }, as: UTF8.self)
    self.directory = directory
    let command = program.map { [$0, "softdpu", "--log-level", "error"] } ?? ["/proc/self/exe", "serve"]
    child = try Child(
      command + [
        "--rpc-socket", "\(directory)/rpc.sock", "--vhost-dir", "\(directory)/bus", "--state-dir",
        "\(directory)/state", "--reactors", "\(reactors)",
      ])
    do {
      try child.wait(for: "\(directory)/rpc.sock")
      var logger = Logger(label: "initiator")
      logger.logLevel = .critical
      initiator = try SoftDPU(
        SoftDPU.Configuration(rpcSocket: "\(directory)/host.sock", vhostDirectory: "\(directory)/host"), logger: logger)
    } catch {
      child.end()
      throw error
    }
    client = JSONRPCClient(path: "\(directory)/rpc.sock")
    host = JSONRPCClient(path: "\(directory)/host.sock")
  }

  func remove() {
    initiator.stop()
    child.end()
    for name in [
      "state/softdpu.json", "state/softdpu.journal", "state/keys.json", "state", "bus", "host", "rpc.sock", "nbd.sock",
      "host.sock", "",
    ] { Glibc.remove("\(directory)/\(name)") }
  }

  static func nqn(_ number: Int) -> String { "nqn.2026-11.io.yusur.bench:\(number)" }

  static func address(_ port: Int) -> JSONValue {
    ["trtype": "TCP", "adrfam": "IPv4", "traddr": "127.0.0.1", "trsvcid": .string("\(port)")]
  }

  /// Connects a subsystem; its first namespace is the device `NAMEn1` here.
  func attach(_ name: String, subsystem: Int, port: Int) async throws {
    var parameters = Remote.address(port)
    parameters["name"] = .string(name)
    parameters["subnqn"] = .string(Remote.nqn(subsystem))
    _ = try await host.call("bdev_nvme_attach_controller", parameters)
  }

  /// Reads a remote namespace at random; how many requests came back.
  func load(_ device: String, depth: Int, seconds: Double) throws -> Int {
    try initiator.load(device, depth: depth, seconds: seconds)
  }

  /// A port that is free now.
  static func freePort() throws -> Int {
    for _ in 0..<100 {
      let port = Int.random(in: 20000..<30000)
      let fd = socket(AF_INET, Int32(SOCK_STREAM.rawValue), 0)
      defer { close(fd) }
      var address = sockaddr_in()
      address.sin_family = sa_family_t(AF_INET)
      address.sin_port = UInt16(port).bigEndian
      let isFree = withUnsafePointer(to: &address) { pointer in
        pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) {
          bind(fd, $0, socklen_t(MemoryLayout<sockaddr_in>.size)) == 0
        }
      }
      if isFree { return port }
    }
    throw BenchmarkError("no port is free")
  }
}
