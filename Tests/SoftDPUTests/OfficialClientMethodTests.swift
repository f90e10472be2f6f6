import Glibc
import JSON
import JSONRPC
import TestSupport
import Testing

/// Every method that softdpu offers, called by SPDK's own command line with what it sends by itself, and
/// `save_config | load_config` into an empty process.
@Suite struct OfficialClientMethodTests {
  /// What a call has to answer.
  private enum Answer {
    /// Anything but an error.
    case done
    /// At least these members; of an array, these first elements.
    case has(JSONValue)
    case failure(Int)
  }

  /// One call of the command line, or of the client's library where the command line has no verb for it.
  private struct Call {
    var line: String
    var answer: Answer
    /// Called by the library: its arguments, in Python.
    var arguments: String?

    init(_ line: String, _ answer: Answer = .done) { (self.line, self.answer) = (line, answer) }
    init(library method: String, _ arguments: String, _ answer: Answer = .done) {
      (line, self.answer, self.arguments) = (method, answer, arguments)
    }

    var method: String { String(line.prefix { $0 != " " }) }
    /// A method that only ever fails is not offered.
    var isOffered: Bool { if case .failure = answer { false } else { true } }
  }

  // MARK: The table

  private static let host = "nqn.2014-08.org.nvmexpress:uuid:4b4e8a5c-7d0a-4b7e-9d55-000000000001"
  private static let local = "nqn.2024-01.io.example:local"
  private static let remote = "nqn.2024-01.io.example:remote"
  private static let key = String(repeating: "1a", count: 16)
  private static let secondKey = String(repeating: "2b", count: 16)

  private static func uuid(_ number: Int) -> String { "00000000-0000-4000-8000-00000000000\(number)" }

  /// Where things are.
  private struct Places {
    var file: String
    var pool: String
    var second: String
    var socket: String
    var port: Int
    var remotePort: Int
  }

  private static let keys = [
    Call("accel_crypto_key_create -c AES_XTS -k \(key) -e \(secondKey) -n k0", .has(true)),
    Call("accel_crypto_key_create -c AES_XTS -k \(key) -e \(secondKey) -t SIMPLE_LBA -n k1", .has(true)),
    Call("accel_crypto_key_create -c AES_CBC -k \(key) -n k2", .failure(-22)),
    Call("accel_crypto_key_destroy -n k1", .has(true)),
    Call("accel_crypto_keys_get -k k0", .has([["name": "k0", "cipher": "AES_XTS"]])),
    Call("accel_crypto_keys_get", .has([["name": "k0"]])),
  ]

  /// Builds something of every kind.
  private static func building(_ at: Places) -> [Call] {
    [
      Call("spdk_get_version", .has(["fields": ["major": 26]])),
      Call("rpc_get_methods"),
      Call("rpc_get_methods --current --include-aliases"),
      Call("framework_get_reactors", .has(["tick_rate": 1_000_000_000])),
      Call("framework_get_subsystems", .has([["subsystem": "accel", "depends_on": []]])),
      Call("framework_get_config bdev", .has([])),
      Call("notify_get_types", .has(["bdev_register", "bdev_unregister"])),
    ] + keys + devices(at) + lvols(at) + waysOut(at)
  }

  private static func devices(_ at: Places) -> [Call] {
    [
      Call("bdev_aio_create \(at.file) aio0 512 --fallocate -u \(uuid(1))", .has("aio0")),
      Call("bdev_aio_rescan aio0"),
      Call("bdev_malloc_create -b m0 -u \(uuid(2)) 16 512", .has("m0")),
      Call("bdev_malloc_create -b m1 -u \(uuid(3)) 16 4096", .has("m1")),
      Call("bdev_malloc_create 0.5 512", .has("Malloc0")),
      Call("bdev_malloc_create -b m2 -m 8 16 512", .failure(-22)),
      Call("bdev_malloc_delete Malloc0"),
      Call("bdev_null_create n0 -u \(uuid(4)) 100 4096", .has("n0")),
      Call("bdev_null_resize n0 200", .has(true)),
      Call("bdev_null_resize n0 100", .failure(-22)),
      Call("bdev_delay_create -b n0 -d slow0 -u \(uuid(5)) -r 10 -t 20 -w 10 -n 20", .has("slow0")),
      Call("bdev_delay_update_latency slow0 p99_read 30", .has(true)),
      Call("bdev_error_create aio0 --uuid \(uuid(6))", .has(true)),
      Call("bdev_error_inject_error EE_aio0 read failure -n 1"),
      Call("bdev_error_inject_error EE_aio0 clear failure"),
      Call("bdev_error_inject_error EE_aio0 read corrupt_data -n 1 -o 3 -v 7"),
      Call("bdev_error_inject_error EE_aio0 clear failure"),
      Call("bdev_error_inject_error EE_aio0 write pending -n 1"),
      Call("bdev_error_resume_pending EE_aio0"),
      Call("bdev_error_resume_pending aio0", .failure(-19)),
      Call("bdev_error_inject_error EE_aio0 read nvme_failure --nvme-sct 0 --nvme-sc 6", .failure(-22)),
      Call("bdev_crypto_create m1 c0 -n k0", .has("c0")),
      Call("bdev_crypto_create m0 c1 -n none", .failure(-2)),
      Call("bdev_set_qos_limit n0 --rw-ios-per-sec 20000 --r-mbytes-per-sec 100"),
      Call("bdev_set_qos_limit n0", .failure(-32602)),
      Call("bdev_wait_for_examine"),
      Call("bdev_get_bdevs -b n0 -t 100", .has([["assigned_rate_limits": ["rw_ios_per_sec": 20000]]])),
      Call("bdev_get_iostat", .has(["tick_rate": 1_000_000_000])),
      Call("bdev_get_iostat --names aio0,m0 --reset-mode all", .has(["bdevs": [["name": "aio0"], ["name": "m0"]]])),
      Call("bdev_reset_iostat -b m0 -m all"),
      Call("bdev_reset_iostat"),
      Call(library: "bdev_set_slow_io", "threshold_us=1000000", .has(true)),
      Call(library: "bdev_get_slow_io", "max=5", .has(["threshold_us": 1_000_000, "requests": []])),
      Call("notify_get_notifications -i 0 -n 1", .has([["type": "bdev_register", "ctx": "aio0", "id": 0]])),
    ]
  }

  private static func lvols(_ at: Places) -> [Call] {
    [
      Call("bdev_aio_create \(at.pool) pool", .has("pool")),
      Call("bdev_lvol_create_lvstore pool first -c 65536 --clear-method none"),
      Call("bdev_lvol_create_lvstore pool again", .failure(-1)),
      Call("bdev_lvol_create -l first -t v0 16"),
      Call("bdev_lvol_create -l first -c default thick 1"),
      Call("bdev_lvol_create -l first v0 16", .failure(-17)),
      Call("bdev_lvol_snapshot first/v0 s0"),
      Call("bdev_lvol_clone first/s0 c0"),
      Call("bdev_lvol_clone first/s0 c1"),
      Call("bdev_lvol_rename first/c0 c2"),
      Call("bdev_lvol_resize first/v0 32"),
      Call("bdev_lvol_inflate first/c1"),
      Call("bdev_lvol_decouple_parent first/c2"),
      Call("bdev_lvol_set_read_only first/c2"),
      Call("bdev_lvol_get_lvols -l first", .has([["alias": "first/c1"], ["alias": "first/c2"]])),
      Call("bdev_lvol_get_lvols", .has([["name": "c1"]])),
      Call("bdev_lvol_rename_lvstore first lvs"),
      Call("bdev_lvol_grow_lvstore -l lvs", .has(true)),
      Call("bdev_lvol_get_lvstores -l lvs", .has([["name": "lvs", "base_bdev": "pool", "cluster_size": 65536]])),
      Call("bdev_get_bdevs -b lvs/v0", .has([["num_blocks": 65536, "aliases": ["lvs/v0"]]])),
      Call("bdev_lvol_delete lvs/c1"),
      Call("bdev_lvol_delete lvs/none", .failure(-19)),
      Call("bdev_aio_create \(at.second) second", .has("second")),
      Call("bdev_lvol_create_lvstore second other"),
      Call("bdev_lvol_delete_lvstore -l other"),
    ]
  }

  private static func waysOut(_ at: Places) -> [Call] {
    [
      Call("vhost_create_blk_controller vhost0 lvs/v0"),
      Call("vhost_create_blk_controller vhost1 slow0 -r --transport vhost_user_blk"),
      Call("vhost_get_controllers -n vhost1", .has([["ctrlr": "vhost1"]])),
      Call("vhost_get_controllers", .has([["ctrlr": "vhost0"], ["ctrlr": "vhost1"]])),
      Call("nbd_start_disk m0 \(at.socket)", .has(.string(at.socket))),
      Call("nbd_get_disks -n \(at.socket)", .has([["bdev_name": "m0", "nbd_device": .string(at.socket)]])),
      Call("nbd_get_disks", .has([["bdev_name": "m0"]])),
      Call("nvmf_create_transport -t tcp -q 64 -i 131072 -c 8192 -a 64 --acceptor-poll-rate 10000"),
      Call("nvmf_create_transport -t tcp", .failure(-32603)),
      Call("nvmf_create_transport -t rdma", .failure(-32602)),
      Call("nvmf_get_transports --trtype tcp", .has([["trtype": "TCP", "max_queue_depth": 64]])),
      Call("nvmf_create_subsystem \(local) -i 0", .failure(-32602)),
      Call("nvmf_create_subsystem \(local) -I 65520", .failure(-32602)),
      Call("nvmf_create_subsystem \(local) -i 6 -I 5", .failure(-32602)),
      Call("nvmf_create_subsystem \(local) -s SN1 -d Model -m 8 -i 5 -I 6"),
      Call("nvmf_create_subsystem \(local)x -r", .failure(-32602)),
      Call("nvmf_subsystem_add_ns \(local) c0 -n 3 -u \(uuid(7))"),
      Call("nvmf_subsystem_add_ns \(local) lvs/thick"),
      Call("nvmf_subsystem_add_listener \(local) -t tcp -f ipv4 -a 127.0.0.1 -s \(at.port)"),
      Call("nvmf_subsystem_get_listeners \(local)", .has([["address": ["trsvcid": .string("\(at.port)")]]])),
      Call("nvmf_subsystem_add_host \(local) \(host)"),
      Call("nvmf_subsystem_add_host \(local) \(host)x --psk key", .failure(-32602)),
      Call("nvmf_subsystem_allow_any_host \(local) --allow-any-host"),
      Call("nvmf_subsystem_allow_any_host \(local) --no-allow-any-host"),
      Call(
        "nvmf_get_subsystems \(local)",
        .has([
          [
            "nqn": .string(local), "allow_any_host": false, "hosts": [["nqn": .string(host)]], "min_cntlid": 5,
            "max_cntlid": 6,
          ]
        ])),
      Call("nvmf_subsystem_get_controllers \(local)", .has([])),
      Call("nvmf_subsystem_get_qpairs \(local)", .has([])),
      Call("nvmf_get_stats", .has(["poll_groups": [["transports": [["trtype": "TCP"]]]]])),
      Call(
        "bdev_nvme_attach_controller -b r0 -t tcp -f ipv4 -a 127.0.0.1 -s \(at.remotePort) -n \(remote) -q \(host) "
          + "-e -d --num-io-queues 2 -l -1 -o 1 -u 5 -x multipath --policy active_active --selector round_robin",
        .has("r0n1")),
      Call(
        "bdev_nvme_attach_controller -b r1 -t tcp -a 127.0.0.1 -s \(at.remotePort) -n \(remote) "
          + "--policy active_active --selector queue_depth", .failure(-22)),
      Call("bdev_nvme_attach_controller -b r1 -t tcp -a 127.0.0.1 -s \(at.remotePort) -n \(remote)x", .failure(-5)),
      Call("bdev_nvme_get_controllers -n r0", .has([["name": "r0", "ctrlrs": [["state": "enabled"]]]])),
      Call("bdev_nvme_reset_controller r0"),
      Call("bdev_nvme_get_path_iostat -b r0n1", .has(["name": "r0n1"])),
    ]
  }

  /// Takes everything down again.
  private static func takingDown(_ at: Places) -> [Call] {
    [
      Call("bdev_malloc_delete m0", .failure(-16)),
      Call("vhost_delete_controller vhost0"),
      Call("vhost_delete_controller vhost1"),
      Call("nbd_stop_disk \(at.socket)"),
      Call("nvmf_subsystem_remove_host \(local) \(host)"),
      Call("nvmf_subsystem_remove_host \(local) \(host)", .failure(-32603)),
      Call("nvmf_subsystem_remove_ns \(local) 3"),
      Call("nvmf_subsystem_remove_listener \(local) -t tcp -f ipv4 -a 127.0.0.1 -s \(at.port)"),
      Call("nvmf_delete_subsystem \(local)"),
      Call("bdev_nvme_detach_controller r0"),
      Call("bdev_crypto_delete c0"),
      Call("bdev_error_delete EE_aio0"),
      Call("bdev_delay_delete slow0"),
      Call("bdev_null_delete n0"),
      Call("bdev_malloc_delete m0"),
      Call("bdev_malloc_delete m1"),
      Call("bdev_lvol_delete_lvstore -l lvs"),
      Call("bdev_aio_delete pool"),
      Call("bdev_aio_delete second"),
      Call("bdev_aio_delete aio0"),
      Call("accel_crypto_key_destroy -n k0"),
      Call("bdev_get_bdevs", .has([])),
    ]
  }

  // MARK: The test

  @Test func everyMethodIsCalledByTheOfficialClientAndTheConfigurationMoves() async throws {
    let fileSystem = try await ReflinkFileSystem()
    let files = try TemporaryDirectory()
    let places = Places(
      file: files.file("disk"), pool: "\(fileSystem.path)/first", second: "\(fileSystem.path)/second",
      socket: files.file("nbd.sock"), port: try TestEnvironment.freePort(), remotePort: try TestEnvironment.freePort())
    for folder in [places.pool, places.second] { mkdir(folder, 0o700) }
    close(open(places.file, O_RDWR | O_CREAT, 0o600))
    truncate(places.file, 1 << 20)
    let target = try await SoftDPUProcess(try TemporaryDirectory(), note: "the remote target")
    _ = try await run(
      [
        Call("bdev_malloc_create -b m -u \(Self.uuid(8)) 8 512"), Call("nvmf_create_transport -t tcp"),
        Call("nvmf_create_subsystem \(Self.remote) -a"), Call("nvmf_subsystem_add_ns \(Self.remote) m"),
        Call("nvmf_subsystem_add_listener \(Self.remote) -t tcp -a 127.0.0.1 -s \(places.remotePort)"),
      ], by: target)

    let building = Self.building(places)
    let takingDown = Self.takingDown(places)
    let first = try await SoftDPUProcess(try TemporaryDirectory(), note: "the first")
    let offered = Set(try await first.client.call("rpc_get_methods").arrayValue?.compactMap(\.stringValue) ?? [])
    let called = Set((building + takingDown).filter(\.isOffered).map(\.method))
    // Not SPDK's, so its client has no word for it; GroupSnapshotTests calls it.
    #expect(offered.subtracting(called).sorted() == ["bdev_snapshot_files"], "no call in this table")
    #expect(called.subtracting(offered).sorted() == [], "softdpu does not offer it")

    _ = try await run(building, by: first)
    // What was written is counted where the client looks for it.
    _ = try await NBDTests.io("nbd+unix:///?socket=\(places.socket)", "write -P 7 0 64k", "flush")
    let counted = try await run([Call("bdev_get_iostat --names m0")], by: first)[0]["bdevs"]?[0]
    #expect(counted?["bytes_written"] == 65536)
    #expect(counted?["num_flush_ops"]?.intValue ?? 0 > 0)

    let before = try await run([Call("save_config"), Call("bdev_get_bdevs")], by: first)
    first.process.signal(SIGTERM)
    _ = try await first.process.waitForExit(within: .seconds(20))

    let configuration = try files.write("saved.json", before[0].text)
    let second = try await SoftDPUProcess(try TemporaryDirectory(), note: "the second")
    // Keys are in no configuration: they go their own way.
    _ = try await run(Self.keys + [Call("load_config -j \(configuration)")], by: second)
    let after = try await run([Call("save_config"), Call("bdev_get_bdevs")], by: second)
    #expect(before[0]["subsystems"]?.arrayValue?.count == 5)
    #expect(after[0] == before[0])
    #expect(Self.devices(after[1]) == Self.devices(before[1]))

    _ = try await run(takingDown, by: second)
    #expect(try await second.client.call("bdev_get_bdevs") == [])
    let rest = try await run([Call("save_config -i -1")], by: second)[0]
    let calls = rest["subsystems"]?.arrayValue?.flatMap { $0["config"]?.arrayValue ?? [] }
    // Nothing takes a transport away.
    #expect(calls?.compactMap { $0["method"]?.stringValue } == ["nvmf_create_transport"])
  }

  // MARK: Running the client

  /// Makes the calls one after the other, and compares what each answers. The values that were answered.
  private func run(_ calls: [Call], by softDPU: SoftDPUProcess) async throws -> [JSONValue] {
    let socket = softDPU.directory.file("rpc.sock")
    var answers: [(isDone: Bool, text: String)] = []
    // The library's calls stand between those of the command line.
    var rest = calls[...]
    while let call = rest.first {
      if let arguments = call.arguments {
        rest = rest.dropFirst()
        let program =
          "import json, sys; from spdk.rpc.client import JSONRPCClient; "
          + "print(json.dumps(JSONRPCClient(sys.argv[1]).\(call.method)(\(arguments))))"
        answers.append((true, try await ChildProcess.run(try await tool("python3"), ["-c", program, socket])))
        continue
      }
      let part = rest.prefix { $0.arguments == nil }
      rest = rest.dropFirst(part.count)
      let lines = try softDPU.directory.write("calls", part.map { "-s \(socket) \($0.line)\n" }.joined())
      let output = try await ChildProcess.run(
        "sh", ["-c", "exec \"$0\" --server <\"$1\"", try await tool("spdk-rpc"), lines], within: .seconds(120))
      let parts = Self.split(output)
      guard parts.count == part.count else { throw TestEnvironmentError("the client answered: \(output)") }
      answers += parts
    }
    return zip(calls, answers).map { call, answer in
      let value = (try? JSONValue.parse(answer.text)) ?? .string(answer.text)
      switch call.answer {
      case .done: #expect(answer.isDone, "\(call.line): \(answer.text)")
      case .has(let expected):
        #expect(answer.isDone && Self.has(value, expected), "\(call.line): \(answer.text)")
      case .failure(let code):
        // The client prints its request, and then the error object.
        let error = answer.text.lastIndex(of: "{").flatMap { try? JSONValue.parse(String(answer.text[$0...])) }
        #expect(!answer.isDone && error?["code"]?.intValue == code, "\(call.line): \(answer.text)")
      }
      return value
    }
  }

  private func tool(_ name: String) async throws -> String {
    let environment = try await ChildProcess.run(
      "\(TestEnvironment.repository)/scripts/test-venv.sh", within: .seconds(300))
    return "\(environment.split(separator: "\n").last ?? "")/bin/\(name)"
  }

  /// The client ends each answer with a line of its status.
  private static func split(_ output: String) -> [(isDone: Bool, text: String)] {
    var answers: [(isDone: Bool, text: String)] = []
    var lines: [Substring] = []
    for line in output.split(separator: "\n", omittingEmptySubsequences: false) {
      guard line.hasPrefix("**STATUS=") else {
        lines.append(line)
        continue
      }
      answers.append((line.hasSuffix("=0"), lines.joined(separator: "\n")))
      lines = []
    }
    return answers
  }

  /// Devices by their names, without the numbers that a remote subsystem gave to its hosts.
  private static func devices(_ list: JSONValue) -> [String: JSONValue] {
    let entries = (list.arrayValue ?? []).map { device in
      var device = device
      if device["driver_specific"]?["nvme"] != nil { device["driver_specific"] = .null }
      return (device["name"]?.stringValue ?? "", device)
    }
    return Dictionary(entries) { first, _ in first }
  }

  /// Whether a value has at least what is expected of it.
  private static func has(_ value: JSONValue, _ expected: JSONValue) -> Bool {
    if let members = expected.objectValue {
      return members.allSatisfy { name, expected in value[name].map { has($0, expected) } ?? false }
    }
    if let elements = expected.arrayValue {
      guard let found = value.arrayValue, found.count >= elements.count, !elements.isEmpty || found.isEmpty else {
        return false
      }
      return zip(found, elements).allSatisfy { has($0, $1) }
    }
    return value == expected
  }
}
