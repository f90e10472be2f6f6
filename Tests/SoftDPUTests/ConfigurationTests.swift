import Glibc
import JSON
import JSONRPC
import SoftDPU
import TestSupport
import Testing

/// What is written down, against what is there.
@Suite(.serialized) struct ConfigurationTests {
  private static func state(_ directory: TemporaryDirectory) -> String { directory.file("state") }

  /// What a start would bring back is what is there, whatever the last call was.
  private static func expectWritten(_ client: JSONRPCClient, _ directory: TemporaryDirectory, _ what: String)
    async throws
  {
    var live: Set<ConfigurationCall> = []
    for subsystem in ["bdev", "vhost_blk", "nvmf", "nbd"] {
      let calls = try await client.call("framework_get_config", ["name": .string(subsystem)]).arrayValue ?? []
      live.formUnion(calls.compactMap(ConfigurationCall.init))
    }
    let written = try ConfigurationStore.read(directory: state(directory)).calls
    #expect(written.count == live.count && Set(written) == live, "after \(what)")
  }

  @Test func everyCallIsWrittenDown() async throws {
    let target = try Target(.memory)
    let port = try TestEnvironment.freePort()
    let address: JSONValue = ["trtype": "TCP", "traddr": "127.0.0.1", "trsvcid": .string("\(port)")]
    let nqn: JSONValue = "nqn.2026-11.io.yusur.test:journal"
    func socket(_ name: String) -> JSONValue { .string(target.directory.file("\(name).sock")) }
    let calls: [(String, JSONValue)] = [
      ("bdev_aio_create", ["name": "disk", "filename": .string(target.file), "block_size": 512, "fallocate": true]),
      ("bdev_malloc_create", ["name": "m", "block_size": 512, "num_blocks": 2048]),
      ("bdev_null_create", ["name": "n", "block_size": 512, "num_blocks": 2048]),
      ("bdev_null_resize", ["name": "n", "new_size": 2]),
      ("bdev_error_create", ["base_name": "n"]),
      (
        "bdev_delay_create",
        [
          "base_bdev_name": "m", "name": "late", "avg_read_latency": 1, "p99_read_latency": 2, "avg_write_latency": 3,
          "p99_write_latency": 4,
        ]
      ),
      ("bdev_delay_update_latency", ["delay_bdev_name": "late", "latency_type": "p99_read", "latency_us": 9]),
      ("bdev_set_qos_limit", ["name": "late", "rw_ios_per_sec": 5000]),
      ("bdev_set_qos_limit", ["name": "late", "w_mbytes_per_sec": 7]),
      ("vhost_create_blk_controller", ["ctrlr": "vda", "dev_name": "disk"]),
      ("nbd_start_disk", ["bdev_name": "late", "nbd_device": socket("a")]),
      ("nvmf_create_transport", ["trtype": "TCP"]),
      ("nvmf_create_subsystem", ["nqn": nqn, "allow_any_host": false]),
      ("nvmf_subsystem_add_host", ["nqn": nqn, "host": "nqn.2026-11.io.yusur.test:one"]),
      ("nvmf_subsystem_add_host", ["nqn": nqn, "host": "nqn.2026-11.io.yusur.test:two"]),
      (
        "nvmf_subsystem_add_ns",
        ["nqn": nqn, "namespace": ["bdev_name": "disk", "uuid": "11111111-1111-4111-8111-111111111111"]]
      ),
      (
        "nvmf_subsystem_add_ns",
        ["nqn": nqn, "namespace": ["bdev_name": "late", "nsid": 5, "uuid": "22222222-2222-4222-8222-222222222222"]]
      ),
      ("nvmf_subsystem_add_listener", ["nqn": nqn, "listen_address": address]),
      ("nvmf_subsystem_allow_any_host", ["nqn": nqn, "allow_any_host": true]),
      (
        "bdev_nvme_attach_controller",
        ["name": "r", "trtype": "TCP", "traddr": "127.0.0.1", "trsvcid": .string("\(port)"), "subnqn": nqn]
      ),
      ("bdev_set_qos_limit", ["name": "rn1", "rw_ios_per_sec": 5000]),
      ("bdev_nvme_detach_controller", ["name": "r"]),
      ("nvmf_subsystem_remove_host", ["nqn": nqn, "host": "nqn.2026-11.io.yusur.test:one"]),
      ("nvmf_subsystem_remove_ns", ["nqn": nqn, "nsid": 1]),
      ("nvmf_subsystem_remove_listener", ["nqn": nqn, "listen_address": address]),
      ("vhost_delete_controller", ["ctrlr": "vda"]),
      ("nvmf_delete_subsystem", ["nqn": nqn]),
      ("nbd_stop_disk", ["nbd_device": socket("a")]),
      ("bdev_set_qos_limit", ["name": "late", "w_mbytes_per_sec": 0, "rw_ios_per_sec": 0]),
      ("bdev_delay_delete", ["name": "late"]),
      ("bdev_malloc_delete", ["name": "m"]),
      ("bdev_malloc_create", ["name": "m", "block_size": 4096, "num_blocks": 8]),
      ("bdev_aio_delete", ["name": "disk"]),
    ]
    for (method, parameters) in calls {
      _ = try await target.client.call(method, parameters)
      try await Self.expectWritten(target.client, target.directory, "\(method) \(parameters.text)")
    }
    let before = try ConfigurationStore.read(directory: Self.state(target.directory)).calls
    #expect(
      before.map(\.method) == ["bdev_null_create", "bdev_error_create", "bdev_malloc_create", "nvmf_create_transport"])
    // A clean end puts all of it into one file.
    #expect(access(target.directory.file("state/softdpu.journal"), F_OK) == 0)
    target.dataPlane.stop()
    #expect(access(target.directory.file("state/softdpu.journal"), F_OK) != 0)
    #expect(Set(try ConfigurationStore.read(directory: Self.state(target.directory)).calls) == Set(before))
  }

  /// What a call writes does not grow with what there is.
  @Test func aCallCostsALine() async throws {
    let target = try Target(.memory)
    func create(_ number: Int) async throws {
      _ = try await target.client.call(
        "bdev_malloc_create",
        ["name": .string("m\(1000 + number)"), "block_size": 512, "num_blocks": 8])
    }
    func size(_ name: String) -> Int {
      var status = stat()
      return stat(target.directory.file("state/\(name)"), &status) == 0 ? Int(status.st_size) : 0
    }
    for number in 0..<3 { try await create(number) }
    let (file, first) = (size("softdpu.json"), size("softdpu.journal"))
    try await create(3)
    let line = size("softdpu.journal") - first
    #expect(line > 0 && line < 1024)
    for number in 4..<400 { try await create(number) }
    #expect(size("softdpu.json") == file)
    #expect(size("softdpu.journal") - first <= 397 * (line + 4))
  }

  /// A journal that has become long is put into the file, while the process runs.
  @Test func aLongJournalIsPutIntoTheFile() async throws {
    let target = try Target(.memory)
    _ = try await target.client.call("bdev_malloc_create", ["name": "m", "block_size": 512, "num_blocks": 8])
    func size(_ name: String) -> Int {
      var status = stat()
      return stat(target.directory.file("state/\(name)"), &status) == 0 ? Int(status.st_size) : 0
    }
    var longest = 0
    for number in 1...4 {
      // Eight batches of 256: limits that change again and again.
      for _ in 0..<8 {
        let batch = JSONValue.array(
          (0..<256).map { index in
            [
              "jsonrpc": "2.0", "id": .integer(Int64(index)), "method": "bdev_set_qos_limit",
              "params": ["name": "m", "rw_ios_per_sec": .integer(Int64(1000 * (1 + (index + number) % 7)))],
            ]
          })
        let answers = try await Self.exchange(target.directory.file("rpc.sock"), batch)
        #expect(answers.arrayValue?.allSatisfy { $0["result"] == true } == true)
        longest = max(longest, size("softdpu.journal"))
      }
    }
    #expect(longest > 512 << 10 && longest < (1 << 20) + (256 << 10), "\(longest)")
    #expect(size("softdpu.journal") < longest)
    try await Self.expectWritten(target.client, target.directory, "many calls")
  }

  /// Sends a text as it is.
  private static func exchange(_ path: String, _ value: JSONValue) async throws -> JSONValue {
    let stream = try JSONStream.connect(path: path)
    try stream.send(value)
    for try await answer in stream { return answer }
    throw TestEnvironmentError("no answer")
  }

  @Test func nothingIsChangedWhereNothingCanBeWritten() async throws {
    let target = try Target(.memory)
    // The place of the next file is taken by a folder.
    let obstacle = target.directory.file("state/softdpu.json.new")
    mkdir(obstacle, 0o700)
    let create: JSONValue = ["name": "m", "block_size": 512, "num_blocks": 8]
    await expectCode(-Int(EISDIR)) { try await target.client.call("bdev_malloc_create", create) }
    #expect(try await target.client.call("bdev_get_bdevs").arrayValue?.isEmpty == true)
    rmdir(obstacle)
    _ = try await target.client.call("bdev_malloc_create", create)
    try await Self.expectWritten(target.client, target.directory, "another try")
    _ = try await target.client.call("bdev_set_qos_limit", ["name": "m", "rw_ios_per_sec": 3000])
    try await Self.expectWritten(target.client, target.directory, "a limit")
  }

  /// SIGKILL while several clients change the configuration: what was answered is there after the start, and what was
  /// not is there wholly or not at all.
  @Test func whatWasAnsweredSurvivesAKill() async throws {
    let directory = try TemporaryDirectory()
    let path = directory.file("rpc.sock")
    func start() async throws -> ChildProcess {
      let process = try ChildProcess(
        TestEnvironment.builtProduct("ycloud"),
        [
          "softdpu", "--rpc-socket", path, "--vhost-dir", directory.file("bus"), "--state-dir",
          Self.state(directory), "--log-level", "error",
        ])
      let client = JSONRPCClient(path: path)
      try await eventually(within: .seconds(20), process.output) {
        _ = try await client.call("spdk_get_version"); return true
      }
      return process
    }
    /// Makes disks, and removes every third, until the process is gone: what was answered, and what was under way.
    @Sendable func work(_ round: Int, _ worker: Int) async -> (present: Set<String>, doubtful: Set<String>) {
      let client = JSONRPCClient(path: path)
      var present: Set<String> = []
      for number in 0..<100_000 {
        let name = "d\(round)-\(worker)-\(number)"
        do {
          _ = try await client.call(
            "bdev_malloc_create", ["name": .string(name), "block_size": 512, "num_blocks": 8])
        } catch { return (present, [name]) }
        present.insert(name)
        guard number % 3 == 0 else { continue }
        do {
          _ = try await client.call("bdev_malloc_delete", ["name": .string(name)])
        } catch { return (present.subtracting([name]), [name]) }
        present.remove(name)
      }
      return (present, [])
    }
    var expected: Set<String> = []
    for round in 0..<6 {
      let process = try await start()
      let names = try await names(JSONRPCClient(path: path))
      #expect(expected == names)
      async let workers = withTaskGroup(of: (present: Set<String>, doubtful: Set<String>).self) { group in
        for worker in 0..<4 { group.addTask { await work(round, worker) } }
        var all: [(present: Set<String>, doubtful: Set<String>)] = []
        for await one in group { all.append(one) }
        return all
      }
      // Any moment is good: at some of them the journal is just being written.
      try await Task.sleep(for: .milliseconds(Int.random(in: 40...200)))
      process.signal(SIGKILL)
      let results = await workers
      _ = try await process.waitForExit(within: .seconds(10))
      let next = try await start()
      let found = try await self.names(JSONRPCClient(path: path))
      let certain = results.reduce(into: expected) { $0.formUnion($1.present) }
      let doubtful = results.reduce(into: Set<String>()) { $0.formUnion($1.doubtful) }
      #expect(certain.isSubset(of: found), "lost: \(certain.subtracting(found))")
      #expect(found.subtracting(certain).isSubset(of: doubtful), "came back: \(found.subtracting(certain))")
      expected = found
      next.signal(SIGKILL)
      _ = try await next.waitForExit(within: .seconds(10))
    }
    #expect(expected.count > 20)
  }

  private func names(_ client: JSONRPCClient) async throws -> Set<String> {
    Set((try await client.call("bdev_get_bdevs").arrayValue ?? []).compactMap { $0["name"]?.stringValue })
  }
}
