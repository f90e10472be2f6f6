import Glibc
import JSON
import JSONRPC
import TestSupport
import Testing

/// A real guest: QEMU with the tiny image, which writes while its data plane is killed.
@Suite(.serialized) struct GuestTests {
  private func softDPU(_ directory: TemporaryDirectory) throws -> ChildProcess {
    try ChildProcess(
      TestEnvironment.builtProduct("ycloud"),
      [
        "softdpu", "--rpc-socket", directory.file("rpc.sock"), "--vhost-dir", directory.file("bus"), "--state-dir",
        directory.file("state"),
      ])
  }

  private static let script = """
    #!/bin/sh
    i=0
    while [ $i -lt 400 ]; do
      i=$((i + 1))
      echo "line $i" >>/data/log
      sync
      echo "written $i"
      usleep 20000
    done
    echo "finished"
    sync
    poweroff -f
    """

  @Test(.timeLimit(.minutes(5))) func resumesAfterTheTargetWasKilled() async throws {
    let directory = try TemporaryDirectory()
    let image = try await ChildProcess.run("\(TestEnvironment.repository)/images/build-tiny.sh", within: .seconds(240))
    let cache = (image.split(separator: "\n").last.map(String.init) ?? "").trimmingSpaces
    let tiny = access(cache, F_OK) == 0 ? cache : "\(TestEnvironment.home)/.cache/ycloud/images/tiny.raw"
    try await ChildProcess.run("cp", ["--sparse=always", tiny, directory.file("disk")])
    _ = try directory.write("user-data", Self.script)
    _ = try directory.write("meta-data", "instance-id: guest\nlocal-hostname: guest\n")
    try await ChildProcess.run("mkfs.vfat", ["-C", "-n", "CIDATA", directory.file("seed"), "128"])
    try await ChildProcess.run(
      "mcopy", ["-i", directory.file("seed"), directory.file("user-data"), directory.file("meta-data"), "::"])

    var target = try softDPU(directory)
    let client = JSONRPCClient(path: directory.file("rpc.sock"))
    try await eventually {
      _ = try await client.call("spdk_get_version"); return true
    }
    for (name, file) in [("blk-00-disk", "disk"), ("blk-99-seed", "seed")] {
      _ = try await client.call(
        "bdev_aio_create", ["name": .string(file), "filename": .string(directory.file(file)), "block_size": 512])
      _ = try await client.call("vhost_create_blk_controller", ["ctrlr": .string(name), "dev_name": .string(file)])
    }

    let reconnect = try await reconnectOption()
    let guest = try ChildProcess(
      "qemu-system-\(machineArchitecture)",
      [
        "-M", machineArchitecture == "x86_64" ? "q35" : "virt", "-accel", "tcg,thread=multi", "-cpu", "max", "-m",
        "192", "-object", "memory-backend-memfd,id=ram,size=192M,share=on", "-numa", "node,memdev=ram", "-display",
        "none", "-nodefaults", "-no-reboot", "-chardev",
        "socket,id=c0,path=\(directory.file("bus/blk-00-disk")),\(reconnect)", "-device",
        "vhost-user-blk-pci,chardev=c0,bootindex=1", "-chardev",
        "socket,id=c1,path=\(directory.file("bus/blk-99-seed")),\(reconnect)", "-device",
        "vhost-user-blk-pci,chardev=c1", "-serial", "file:\(directory.file("console"))",
      ])
    let consoleFile = directory.file("console")
    @Sendable func console() -> String { contentsOfFile(consoleFile) ?? "" }

    for round in 1...3 {
      try await eventually(within: .seconds(90), "round \(round); console: \(console()); qemu: \(guest.output)") {
        console().contains("written \(round * 50)\r\n")
      }
      target.kill()
      let stalled = console()
      #expect(!stalled.contains("finished"))
      target = try softDPU(directory)
    }
    try await eventually(within: .seconds(90), "console: \(console())") {
      console().contains("finished")
    }
    #expect(!console().contains("I/O error"))
    _ = try await guest.waitForExit(within: .seconds(30))
    target.signal(SIGTERM)
    #expect(try await target.waitForExit() == .code(0))

    let lines = try await dataFile("/log", in: directory.file("disk"))
    #expect(lines == (1...400).map { "line \($0)\n" }.joined())
  }

  /// What has QEMU look for its back end again: whole seconds until release 9.2.
  private func reconnectOption() async throws -> String {
    let version = try await ChildProcess.run("qemu-system-\(machineArchitecture)", ["--version"])
    let number = version.drop { !$0.isNumber }.prefix { $0.isNumber || $0 == "." }.split(separator: ".")
      .compactMap { Int($0) }
    return number.lexicographicallyPrecedes([9, 2]) ? "reconnect=1" : "reconnect-ms=100"
  }

  /// What a file on the image's data partition, the last one, holds.
  private func dataFile(_ path: String, in image: String) async throws -> String {
    let table = try JSONValue.parse(try await ChildProcess.run("sfdisk", ["-J", image]))
    guard let partition = table["partitiontable"]?["partitions"]?.arrayValue?.last,
      let start = partition["start"]?.intValue
    else { throw TestEnvironmentError("no partition table in \(image)") }
    let output = try await ChildProcess.run("debugfs", ["-R", "cat \(path)", "\(image)?offset=\(start * 512)"])
    // The program's name and version come first, on a line of their own.
    return output.hasPrefix("debugfs ")
      ? String(output[(output.firstIndex(of: "\n") ?? output.startIndex)...].dropFirst()) : output
  }

  private var machineArchitecture: String {
    #if arch(arm64)
      "aarch64"
    #else
      "x86_64"
    #endif
  }
}

extension String {
  fileprivate var trimmingSpaces: String {
    String(drop { $0.isWhitespace }.reversed().drop { $0.isWhitespace }.reversed())
  }
}

extension TestEnvironment {
  fileprivate static var home: String { getenv("HOME").map { String(cString: $0) } ?? "/root" }
}
