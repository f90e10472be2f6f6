import Glibc
import JSON
import JSONRPC
import TestSupport
import Testing

import SoftDPU

/// Volumes in a folder that shares extents, on a real XFS.
@Suite struct LvolTests {
  private struct Store {
    let target: Target
    let fileSystem: ReflinkFileSystem
    var client: JSONRPCClient { target.client }

    init() async throws {
      fileSystem = try await ReflinkFileSystem()
      target = try Target(.memory)
      _ = try await client.call(
        "bdev_aio_create", ["name": "pool", "filename": .string(fileSystem.path), "block_size": 512])
      _ = try await client.call("bdev_lvol_create_lvstore", ["bdev_name": "pool", "lvs_name": "lvs"])
    }

    func create(_ name: String, _ megabytes: Int64, thin: Bool = true) async throws -> String {
      let uuid = try await client.call(
        "bdev_lvol_create",
        [
          "lvol_name": .string(name), "size_in_mib": .integer(megabytes), "lvs_name": "lvs",
          "thin_provision": .bool(thin),
        ])
      return uuid.stringValue ?? ""
    }

    func lvol(_ name: String) async throws -> JSONValue? {
      try await client.call("bdev_get_bdevs", ["name": .string(name)])[0]?["driver_specific"]?["lvol"]
    }
  }

  @Test func snapshotsAndClonesLiveOnTheirOwn() async throws {
    let store = try await Store()
    let client = store.client
    let uuid = try await store.create("root", 64)
    let bdev = try await client.call("bdev_get_bdevs", ["name": "lvs/root"])[0]
    #expect(bdev?["name"]?.stringValue == uuid && bdev?["product_name"] == "Logical Volume")
    #expect(bdev?["num_blocks"]?.intValue == 131072)
    let uri = try await NBDTests.export(store.target, uuid)
    _ = try await NBDTests.io(uri, "write -P 1 0 8M", "flush")

    _ = try await client.call("bdev_lvol_snapshot", ["lvol_name": "lvs/root", "snapshot_name": "golden"])
    _ = try await NBDTests.io(uri, "write -P 2 0 4M", "flush")
    _ = try await client.call("bdev_lvol_clone", ["snapshot_name": "lvs/golden", "clone_name": "copy"])
    let copy = try await client.call("bdev_get_bdevs", ["name": "lvs/copy"])[0]?["name"]?.stringValue ?? ""
    let copyURI = try await NBDTests.export(store.target, copy)
    _ = try await NBDTests.io(copyURI, "read -P 1 0 8M", "write -P 3 1M 1M", "read -P 3 1M 1M")
    _ = try await NBDTests.io(uri, "read -P 2 0 4M", "read -P 1 4M 4M")

    let golden = try await store.lvol("lvs/golden")
    #expect(golden?["snapshot"]?.boolValue == true)
    #expect(golden?["clones"]?.arrayValue == ["copy", "root"])
    #expect(try await store.lvol("lvs/copy")?["base_snapshot"] == "golden")
    // A snapshot takes no writes, and does not go while two rest on it.
    let snapshotUUID = try await client.call("bdev_get_bdevs", ["name": "lvs/golden"])[0]?["name"]?.stringValue ?? ""
    let snapshotURI = try await NBDTests.export(store.target, snapshotUUID)
    _ = try await NBDTests.failingIO(snapshotURI, "write 0 4k")
    await expectCode(-32603) { try await client.call("bdev_lvol_delete", ["name": "lvs/golden"]) }
    for device in [copy, snapshotUUID] {
      _ = try await client.call(
        "nbd_stop_disk", ["nbd_device": .string(store.target.directory.file("\(device).sock"))])
    }
    _ = try await client.call("bdev_lvol_delete", ["name": "lvs/copy"])
    _ = try await client.call("bdev_lvol_delete", ["name": "lvs/golden"])
    #expect(try await store.lvol("lvs/root")?["base_snapshot"] == nil)
    _ = try await NBDTests.io(uri, "read -P 2 0 4M", "read -P 1 4M 4M")
  }

  @Test func answersAsSPDKDoes() async throws {
    let store = try await Store()
    let client = store.client
    _ = try await store.create("a", 16)
    await expectCode(-17) {
      try await client.call("bdev_lvol_create", ["lvol_name": "a", "size_in_mib": 16, "lvs_name": "lvs"])
    }
    await expectCode(-32602) {
      try await client.call("bdev_lvol_create", ["lvol_name": "fat", "size_in_mib": 100_000, "lvs_name": "lvs"])
    }
    await expectCode(-19) {
      try await client.call("bdev_lvol_create", ["lvol_name": "b", "size_in_mib": 16, "lvs_name": "none"])
    }
    await expectCode(-32602) {
      try await client.call("bdev_lvol_clone", ["snapshot_name": "lvs/a", "clone_name": "c"])
    }
    _ = try await client.call("bdev_lvol_snapshot", ["lvol_name": "lvs/a", "snapshot_name": "s"])
    await expectCode(-32602) {
      try await client.call("bdev_lvol_snapshot", ["lvol_name": "lvs/a", "snapshot_name": "s"])
    }
    await expectCode(-19) { try await client.call("bdev_lvol_delete", ["name": "lvs/none"]) }
    await expectCode(-1) {
      try await client.call("bdev_lvol_create_lvstore", ["bdev_name": "pool", "lvs_name": "other"])
    }
    await expectCode(-32603) { try await client.call("bdev_lvol_delete", [:]) }
    // Nothing of all that left a file behind.
    let files = try await ChildProcess.run("ls", ["\(store.fileSystem.path)/lvols"]).split(separator: "\n")
    #expect(files.count == 2)
  }

  @Test func resizesRenamesInflates() async throws {
    let store = try await Store()
    let client = store.client
    let uuid = try await store.create("a", 16)
    let uri = try await NBDTests.export(store.target, uuid)
    _ = try await NBDTests.io(uri, "write -P 1 0 16M")
    _ = try await client.call("bdev_lvol_resize", ["name": "lvs/a", "size_in_mib": 33])
    // In whole clusters of 4 MiB.
    #expect(try await client.call("bdev_get_bdevs", ["name": "lvs/a"])[0]?["num_blocks"]?.intValue == 36 << 11)
    _ = try await NBDTests.io(uri, "read -P 1 0 16M", "read -P 0 16M 20M", "write -P 2 32M 4M")
    await expectCode(-32602) { try await client.call("bdev_lvol_resize", ["name": "lvs/a", "size_in_mib": 16]) }
    _ = try await client.call("bdev_lvol_rename", ["old_name": "lvs/a", "new_name": "b"])
    await expectCode(-19) { try await client.call("bdev_get_bdevs", ["name": "lvs/a"]) }
    _ = try await client.call("bdev_lvol_snapshot", ["lvol_name": "lvs/b", "snapshot_name": "s"])
    _ = try await client.call("bdev_lvol_inflate", ["name": "lvs/b"])
    let lvol = try await store.lvol("lvs/b")
    #expect(lvol?["thin_provision"]?.boolValue == false && lvol?["clone"]?.boolValue == false)
    #expect(lvol?["num_allocated_clusters"]?.intValue == 9)
    _ = try await NBDTests.io(uri, "read -P 1 0 16M", "read -P 0 16M 16M", "read -P 2 32M 4M")
    _ = try await client.call("bdev_lvol_set_read_only", ["name": "lvs/b"])
    _ = try await NBDTests.failingIO(uri, "write 0 4k")
  }

  @Test func aStoreOutlivesItsProcess() async throws {
    let store = try await Store()
    _ = try await store.create("a", 16)
    _ = try await store.client.call("bdev_lvol_snapshot", ["lvol_name": "lvs/a", "snapshot_name": "s"])
    let before = try await store.client.call("bdev_lvol_get_lvols", ["lvs_name": "lvs"])
    store.target.dataPlane.stop()
    // A volume that was being made when the process died.
    close(open("\(store.fileSystem.path)/lvols/aaaaaaaa-0000-4000-8000-000000000000.new", O_CREAT | O_RDWR, 0o600))
    let next = try Target.start(store.target.directory)
    defer { next.stop() }
    let client = JSONRPCClient(path: store.target.directory.file("rpc.sock"))
    #expect(try await client.call("bdev_lvol_get_lvols", ["lvs_name": "lvs"]) == before)
    let files = try await ChildProcess.run("ls", ["\(store.fileSystem.path)/lvols"]).split(separator: "\n")
    #expect(files.count == 2)
    _ = try await client.call("bdev_lvol_delete_lvstore", ["lvs_name": "lvs"])
    _ = try await client.call("bdev_aio_delete", ["name": "pool"])
    #expect(try await ChildProcess.run("ls", [store.fileSystem.path]).isEmpty)
  }

  /// The description of yesterday, put back, does not cost what was made since.
  @Test func anOlderDescriptionRemovesNothing() async throws {
    let store = try await Store()
    let pool = store.fileSystem.path
    _ = try await store.create("old", 16)
    try await ChildProcess.run("cp", ["\(pool)/lvstore.json", "\(pool)/yesterday"])
    let uuid = try await store.create("new", 16)
    store.target.dataPlane.stop()
    try await ChildProcess.run("mv", ["\(pool)/yesterday", "\(pool)/lvstore.json"])
    let next = try Target.start(store.target.directory)
    defer { next.stop() }
    let listed = try await store.client.call("bdev_lvol_get_lvols", ["lvs_name": "lvs"]).arrayValue ?? []
    #expect(listed.compactMap { $0["name"]?.stringValue } == ["old"])
    #expect(access("\(pool)/lvols/lost/\(uuid).img", F_OK) == 0)
  }

  /// Without a description there are still volumes: a new store does not take their place.
  @Test func aStoreIsNotMadeOverVolumesWithoutADescription() async throws {
    let store = try await Store()
    let pool = store.fileSystem.path
    let uuid = try await store.create("a", 16)
    _ = try await store.client.call("bdev_aio_delete", ["name": "pool"])
    unlink("\(pool)/lvstore.json")
    _ = try await store.client.call(
      "bdev_aio_create", ["name": "pool", "filename": .string(pool), "block_size": 512])
    await expectCode(-17) {
      try await store.client.call("bdev_lvol_create_lvstore", ["bdev_name": "pool", "lvs_name": "lvs"])
    }
    #expect(access("\(pool)/lvols/\(uuid).img", F_OK) == 0)
  }

  private func free(_ store: Store) async throws -> Int {
    try await store.client.call("bdev_lvol_get_lvstores")[0]?["free_clusters"]?.intValue ?? 0
  }

  /// What does not fit is refused before it has taken the space of the others.
  @Test func whatDoesNotFitTakesNoSpace() async throws {
    let store = try await Store()
    let client = store.client
    _ = try await store.create("thick", 16, thin: false)
    let before = try await free(store)
    await expectCode(-32602) {
      try await client.call("bdev_lvol_resize", ["name": "lvs/thick", "size_in_mib": 4096])
    }
    #expect(try await free(store) == before)
    #expect(try await client.call("bdev_get_bdevs", ["name": "lvs/thick"])[0]?["num_blocks"]?.intValue == 16 << 11)
    _ = try await store.create("thin", 4096)
    await expectCode(-32602) { try await client.call("bdev_lvol_inflate", ["name": "lvs/thin"]) }
    #expect(try await free(store) == before)
    // What is shared has to be copied, and counts.
    let uuid = try await store.create("origin", 300)
    let uri = try await NBDTests.export(store.target, uuid)
    _ = try await NBDTests.io(uri, "write -P 1 0 250M", "flush")
    _ = try await client.call("bdev_lvol_snapshot", ["lvol_name": "lvs/origin", "snapshot_name": "s"])
    let left = try await free(store)
    await expectCode(-32602) { try await client.call("bdev_lvol_inflate", ["name": "lvs/origin"]) }
    #expect(try await free(store) == left)
    _ = try await NBDTests.io(uri, "read -P 1 0 250M")
  }

  /// Every fsync of the folder that has a store's description fails while the file named by SYNC_FAULTS is there.
  private static let library = """
    #define _GNU_SOURCE
    #include <dlfcn.h>
    #include <errno.h>
    #include <fcntl.h>
    #include <stdlib.h>
    #include <unistd.h>

    int fsync(int fd) {
      if (access(getenv("SYNC_FAULTS"), F_OK) == 0 && faccessat(fd, "lvstore.json", F_OK, 0) == 0) {
        errno = EIO;
        return -1;
      }
      return ((int (*)(int))dlsym(RTLD_NEXT, "fsync"))(fd);
    }
    """

  /// A description that readers find, and whose way to the disk failed, is the one that counts: in this process as in the
  /// next.
  @Test func whatAFailedCallHasDoneIsTheSameAfterARestart() async throws {
    let directory = try TemporaryDirectory()
    try directory.write("faults.c", Self.library)
    try await ChildProcess.run(
      "cc", ["-shared", "-fPIC", "-O1", "-o", directory.file("faults.so"), directory.file("faults.c"), "-ldl"])
    let fileSystem = try await ReflinkFileSystem()
    let wrapper = ["env", "LD_PRELOAD=\(directory.file("faults.so"))", "SYNC_FAULTS=\(directory.file("faults"))"]
    var softDPU = try await SoftDPUProcess(directory, wrapper: wrapper)
    var client = softDPU.client
    func names() async throws -> [String] {
      let listed = try await client.call("bdev_lvol_get_lvols", ["lvs_name": "lvs"]).arrayValue ?? []
      return listed.compactMap { $0["name"]?.stringValue }.sorted()
    }
    func setFaults(_ isOn: Bool) {
      if isOn {
        Glibc.close(open(directory.file("faults"), O_CREAT | O_WRONLY, 0o600))
      } else {
        unlink(directory.file("faults"))
      }
    }
    _ = try await client.call(
      "bdev_aio_create", ["name": "pool", "filename": .string(fileSystem.path), "block_size": 512])
    _ = try await client.call("bdev_lvol_create_lvstore", ["bdev_name": "pool", "lvs_name": "lvs"])
    let parameters: (String) -> JSONValue = {
      ["lvol_name": .string($0), "size_in_mib": 8, "lvs_name": "lvs", "thin_provision": true]
    }
    for name in ["a", "b"] { _ = try await client.call("bdev_lvol_create", parameters(name)) }
    setFaults(true)
    await #expect(throws: JSONRPCError.self) { try await client.call("bdev_lvol_delete", ["name": "lvs/a"]) }
    await #expect(throws: JSONRPCError.self) { try await client.call("bdev_lvol_create", parameters("c")) }
    let before = try await names()
    softDPU.process.kill()
    _ = try await softDPU.process.waitForExit()
    setFaults(false)
    softDPU = try await SoftDPUProcess(directory, wrapper: wrapper)
    client = softDPU.client
    defer { softDPU.process.kill() }
    #expect(try await names() == before)
    // What is there has its content, and nothing is in the way of the names.
    for name in try await names() { _ = try await client.call("bdev_get_bdevs", ["name": .string("lvs/\(name)")]) }
    setFaults(true)
    await #expect(throws: JSONRPCError.self) { try await client.call("bdev_lvol_create", parameters("d")) }
    setFaults(false)
    if try await names().contains("d") { _ = try await client.call("bdev_lvol_delete", ["name": "lvs/d"]) }
    _ = try await client.call("bdev_lvol_create", parameters("d"))
    #expect(try await names().contains("d"))
  }

  @Test func aStoreThatIsNoStoreIsRefused() async throws {
    let fileSystem = try await ReflinkFileSystem()
    let target = try Target(.memory)
    for text in [
      "", "{", "[]", "{\"version\": 9}",
      "{\"version\":1,\"uuid\":\"x\",\"name\":\"n\",\"cluster_size\":1,\"lvols\":[]}",
    ] {
      let fd = open("\(fileSystem.path)/lvstore.json", O_CREAT | O_TRUNC | O_WRONLY, 0o600)
      _ = write(fd, text, text.utf8.count)
      close(fd)
      await expectCode(-5) {
        try await target.client.call(
          "bdev_aio_create", ["name": "pool", "filename": .string(fileSystem.path), "block_size": 512])
      }
      #expect(try await target.client.call("bdev_get_bdevs").arrayValue?.isEmpty == true)
    }
    // Where extents cannot be shared, that is told before there is anything to share.
    _ = try await target.client.call(
      "bdev_aio_create", ["name": "shm", "filename": .string("/dev/shm"), "block_size": 512])
    await expectCode(-95) {
      try await target.client.call("bdev_lvol_create_lvstore", ["bdev_name": "shm", "lvs_name": "lvs"])
    }
  }
}
