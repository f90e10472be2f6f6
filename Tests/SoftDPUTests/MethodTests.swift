import JSON
import JSONRPC
import TestSupport
import Testing

/// Which methods there are: what SPDK's clients for storage call, and what the reference tells of.
@Suite struct MethodTests {
  /// By area, without what all its methods begin with.
  private static let expected: [(prefix: String, names: [String])] = [
    ("", ["spdk_get_version", "rpc_get_methods", "framework_get_reactors", "framework_get_config"]),
    ("notify_get_", ["types", "notifications"]),
    ("bdev_", ["get_bdevs", "get_iostat", "set_qos_limit"]),
    ("bdev_malloc_", ["create", "delete"]),
    ("bdev_null_", ["create", "delete", "resize"]),
    ("bdev_aio_", ["create", "rescan", "delete"]),
    (
      "bdev_lvol_",
      [
        "create_lvstore", "delete_lvstore", "get_lvstores", "create", "snapshot", "clone", "resize", "delete",
        "inflate", "rename", "set_read_only", "get_lvols",
      ]
    ),
    (
      "bdev_nvme_",
      ["attach_controller", "detach_controller", "get_controllers", "reset_controller", "get_path_iostat"]
    ),
    ("accel_", ["crypto_key_create", "crypto_key_destroy", "crypto_keys_get"]),
    ("bdev_crypto_", ["create", "delete"]),
    ("bdev_delay_", ["create", "delete"]),
    ("bdev_error_", ["create", "inject_error", "resume_pending", "delete"]),
    (
      "nvmf_",
      [
        "create_transport", "get_transports", "create_subsystem", "delete_subsystem", "get_subsystems", "get_stats",
      ]
    ),
    (
      "nvmf_subsystem_",
      [
        "add_ns", "remove_ns", "add_listener", "remove_listener", "add_host", "remove_host", "get_controllers",
        "get_listeners", "get_qpairs", "allow_any_host",
      ]
    ),
    ("vhost_", ["create_blk_controller", "delete_controller", "get_controllers"]),
    ("nbd_", ["start_disk", "stop_disk", "get_disks"]),
  ]

  private func served() async throws -> Set<String> {
    let target = try Target(.memory)
    return Set(try await target.client.call("rpc_get_methods").arrayValue?.compactMap(\.stringValue) ?? [])
  }

  @Test func clientsOfStorageFindWhatTheyCall() async throws {
    let expected = Set(Self.expected.flatMap { area in area.names.map { area.prefix + $0 } })
    #expect(expected.subtracting(try await served()) == [])
  }

  @Test func theReferenceTellsOfEachMethodAndOfNoOther() async throws {
    let text = try #require(contentsOfFile("\(TestEnvironment.repository)/docs/reference/softdpu-rpc.md"))
    let row = /^\| `((?:[a-z]+_)+[a-z0-9_]+)`/.anchorsMatchLineEndings()
    let told = Set(text.matches(of: row).map { String($0.1) })
    let served = try await served()
    #expect(served.subtracting(told) == [], "not in the reference")
    // Parameters have tables of their own.
    let parameters: Set = ["tls_mode", "tls_certificate", "tls_ca", "tls_psk"]
    #expect(told.subtracting(served).subtracting(parameters) == [], "in the reference only")
  }
}
