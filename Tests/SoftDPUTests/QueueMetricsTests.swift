import JSON
import JSONRPC
import SoftDPU
import Telemetry
import TestSupport
import Testing
import VhostFrontend

/// What is told of queues and connections: `QueueLedger` behind the families, by way of real connections.
@Suite struct QueueMetricsTests {
  private func lines(_ registry: MetricsRegistry, _ name: String) -> [Substring] {
    registry.render().split(separator: "\n").filter { $0.hasPrefix("\(name){") }
  }

  @Test func aHostsQueuesAreToldByAddressAndNumber() async throws {
    let target = try Target(.memory)
    try await target.createVolume()
    let registry = MetricsRegistry()
    target.dataPlane.addMetrics(to: registry)
    let host = try await NVMeHost(target, device: "disk")
    _ = try host.write(block: 0, blocks: 8)
    _ = try host.read(block: 0, blocks: 8)
    _ = try host.read(block: 8, blocks: 1)
    _ = try host.flush()
    let labels = "front_end=\"nvme_tcp\",peer=\"127.0.0.1\",queue=\"1\""
    let operations = lines(registry, "ycloud_softdpu_connection_operations_total")
    for (kind, count) in [("read", 2), ("write", 1), ("other", 1)] {
      #expect(
        operations.contains("ycloud_softdpu_connection_operations_total{\(labels),kind=\"\(kind)\"} \(count)"),
        "\(operations)")
    }
    #expect(
      lines(registry, "ycloud_softdpu_connection_bytes_total").contains(
        "ycloud_softdpu_connection_bytes_total{\(labels),kind=\"read\"} \(9 * 512)"))
    // The admin queue moves nothing.
    #expect(!operations.contains { $0.contains("queue=\"0\"") })
  }

  @Test func aFrontEndsQueuesAreToldByController() async throws {
    let target = try Target(.memory)
    let registry = MetricsRegistry()
    target.dataPlane.addMetrics(to: registry)
    let name = "ycloud_softdpu_vhost_queue_operations_total"
    do {
      let frontend = try await target.frontend(queues: 2)
      let bytes = [UInt8](repeating: 5, count: 4096)
      #expect(try frontend.perform(VhostFrontend.writeType, write: bytes, queue: 1).status == 0)
      frontend.disconnect()
    }
    let labels = "controller=\"\(Target.socketName)\",queue=\"1\",kind=\"write\""
    #expect(lines(registry, name).contains("\(name){\(labels)} 1"), "\(lines(registry, name))")
    _ = try await target.client.call("vhost_delete_controller", ["ctrlr": .string(Target.socketName)])
    #expect(lines(registry, name).isEmpty)
  }

  @Test func connectionsThatComeAndGoAddNoFamilies() async throws {
    let target = try Target(.memory)
    try await target.createVolume()
    let uri = try await NBDTests.export(target, "disk")
    let registry = MetricsRegistry()
    target.dataPlane.addMetrics(to: registry)
    for _ in 0..<5 { _ = try await NBDTests.io(uri, "write 0 4k") }
    let operations = lines(registry, "ycloud_softdpu_connection_operations_total")
    let labels = "front_end=\"nbd\",peer=\"unix\",queue=\"0\",kind=\"write\""
    #expect(operations.contains("ycloud_softdpu_connection_operations_total{\(labels)} 5"), "\(operations)")
    #expect(operations.count == 3)
  }
  @Test func connectionsWithoutANumberAreToldTogether() async throws {
    let target = try Target(.memory)
    try await target.createVolume()
    _ = try await NBDTests.export(target, "disk")
    let registry = MetricsRegistry()
    target.dataPlane.addMetrics(to: registry)
    // More at a time than have a number of their own.
    let clients = try (0..<70).map { _ in try NBDClient(target.directory.file("disk.sock")) }
    for client in clients { _ = try client.perform(.flush) }
    let name = "ycloud_softdpu_connection_operations_total"
    let flushes = lines(registry, name).filter { $0.contains("kind=\"other\"") }
    #expect(flushes.count == 65)
    #expect(
      flushes.contains("\(name){front_end=\"nbd\",peer=\"other\",queue=\"other\",kind=\"other\"} 6"), "\(flushes)")
  }
}
