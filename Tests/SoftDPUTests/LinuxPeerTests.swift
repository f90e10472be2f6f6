import Glibc
import JSON
import JSONRPC
import TestSupport
import Testing

/// Linux's own NVMe over TCP in a guest of QEMU, with nvme-cli and fio, against `ycloud softdpu`.
@Suite(.serialized) struct LinuxPeerTests {
  static let subsystem = "nqn.2026-11.io.yusur.test:disks"

  /// A guest that runs a script and reports on its console.
  final class Peer: Sendable {
    let directory: TemporaryDirectory
    private let guest: ChildProcess

    init(_ script: String, processors: Int = 2) async throws {
      directory = try TemporaryDirectory()
      try await ChildProcess.run("\(TestEnvironment.repository)/images/build-peer.sh", within: .seconds(300))
      let cache =
        getenv("YCLOUD_IMAGE_CACHE").map { String(cString: $0) }
        ?? "\(getenv("XDG_CACHE_HOME").map { String(cString: $0) } ?? "\(getenv("HOME").map { String(cString: $0) } ?? "/root")/.cache")/ycloud/images"
      _ = try directory.write("script", script)
      try await ChildProcess.run(
        "sh",
        [
          "-c",
          "cd \(directory.path) && echo script | cpio --quiet -o -H newc | cat \(cache)/peer-initrd - >initrd",
        ])
      #if arch(arm64)
        let (program, machine, console) = ("qemu-system-aarch64", "virt", "ttyAMA0")
      #else
        let (program, machine, console) = ("qemu-system-x86_64", "q35", "ttyS0")
      #endif
      guest = try ChildProcess(
        program,
        [
          "-M", machine, "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "\(processors)", "-m", "512",
          "-nodefaults", "-display", "none", "-no-reboot", "-kernel", "\(cache)/peer-kernel", "-initrd",
          directory.file("initrd"), "-append", "console=\(console) quiet panic=5 mitigations=off", "-netdev",
          "user,id=net", "-device", "virtio-net-pci,netdev=net", "-serial", "file:\(directory.file("console"))",
        ])
    }

    var console: String { contentsOfFile(directory.file("console")) ?? "" }

    func line(_ text: String, within limit: Duration = .seconds(120)) async throws {
      try await eventually(within: limit, "'\(text)' on the console: \(console.suffix(3000))") {
        console.contains(text) || console.contains("script ended")
      }
      #expect(console.contains(text), "the console has: \(console.suffix(3000))")
    }

    func end() async throws {
      #expect(try await guest.waitForExit(within: .seconds(60)) == .code(0))
    }
  }

  /// The data plane as a process that can be killed.
  private func softDPU(_ directory: TemporaryDirectory) throws -> ChildProcess {
    try ChildProcess(
      TestEnvironment.builtProduct("ycloud"),
      [
        "softdpu", "--rpc-socket", directory.file("rpc.sock"), "--vhost-dir", directory.file("bus"), "--state-dir",
        directory.file("state"),
      ])
  }

  private static func script(_ port: Int, _ options: String) -> String {
    """
    to="-t tcp -a 10.0.2.2 -s \(port)"
    check() { if "$@"; then echo "ok: $*"; else echo "FAILED ($?): $*"; fi; }
    has() { [ "$(blockdev --getsize64 /dev/nvme0n1)" = "$1" ]; }
    wait_for() { i=0; while ! "$@" && [ $i -lt 600 ]; do i=$((i + 1)); usleep 100000; done; "$@"; }
    nvme discover $to | grep -c "subnqn:  \(subsystem)" | sed 's/^/discovered: /'
    check nvme connect $to -n \(subsystem) -i 2 -Q 32 -k 5 -c 1 -l 60 \(options)
    check wait_for test -b /dev/nvme0n1
    check /bin/mke2fs -q -t ext4 /dev/nvme0n1
    check mount -t ext4 /dev/nvme0n1 /mnt
    dd if=/dev/urandom of=/mnt/file bs=1M count=8 2>/dev/null
    sum=$(md5sum </mnt/file)
    umount /mnt
    echo 3 >/proc/sys/vm/drop_caches
    check mount -t ext4 /dev/nvme0n1 /mnt
    check test "$sum" = "$(md5sum </mnt/file)"
    umount /mnt
    echo "ready to grow"
    check wait_for has \(96 << 20)
    check blkdiscard -o 4194304 -l 4194304 /dev/nvme0n1
    check test "$(dd if=/dev/nvme0n1 bs=1M skip=4 count=4 2>/dev/null | tr -d '\\0' | wc -c)" = 0
    check nvme compare /dev/nvme0n1 -s 8192 -c 7 -z 4096 -d /dev/zero
    check nvme write-zeroes /dev/nvme0n1 -s 0 -c 7
    check nvme flush /dev/nvme0n1 -n 1
    echo "ready to be killed"
    check fio --name=verify --filename=/dev/nvme0n1 --direct=1 --rw=randrw --bs=4k --size=48M --io_size=\(12 << 20) \\
      --verify=crc32c --ioengine=libaio --iodepth=16 --output=/tmp/fio
    grep -E "err=|READ|WRITE" /tmp/fio
    echo "I/O errors: $(dmesg | grep -c 'I/O error')"
    check nvme disconnect -n \(subsystem)
    check wait_for test ! -e /dev/nvme0
    """
  }

  @Test(.timeLimit(.minutes(6)), arguments: ["", "--hdr-digest --data-digest"])
  func linuxUsesItsDisks(_ options: String) async throws {
    let directory = try TemporaryDirectory()
    let file = directory.file("disk")
    close(open(file, O_RDWR | O_CREAT, 0o600))
    truncate(file, 64 << 20)
    var process = try softDPU(directory)
    let client = JSONRPCClient(path: directory.file("rpc.sock"))
    try await eventually {
      _ = try await client.call("spdk_get_version"); return true
    }
    let port = Int.random(in: 30000...39999)
    _ = try await client.call(
      "bdev_aio_create",
      ["name": "disk", "filename": .string(file), "block_size": 512, "fallocate": true])
    _ = try await client.call("nvmf_create_transport", ["trtype": "TCP"])
    _ = try await client.call(
      "nvmf_create_subsystem", ["nqn": .string(Self.subsystem), "allow_any_host": true, "serial_number": "YC1"])
    _ = try await client.call(
      "nvmf_subsystem_add_ns", ["nqn": .string(Self.subsystem), "namespace": ["bdev_name": "disk"]])
    _ = try await client.call(
      "nvmf_subsystem_add_listener",
      [
        "nqn": .string(Self.subsystem),
        "listen_address": [
          "trtype": "TCP", "adrfam": "IPv4", "traddr": "127.0.0.1", "trsvcid": .string("\(port)"),
        ],
      ])

    let peer = try await Peer(Self.script(port, options))
    try await peer.line("ready to grow")
    let controllers = try await client.call("nvmf_subsystem_get_controllers", ["nqn": .string(Self.subsystem)])
    #expect(controllers.arrayValue?.count == 1 && controllers[0]?["num_io_qpairs"]?.intValue == 2)
    truncate(file, 96 << 20)
    _ = try await client.call("bdev_aio_rescan", ["name": "disk"])

    try await peer.line("ready to be killed")
    try await eventually(within: .seconds(60), "the guest writes") {
      let value = try await client.call("bdev_get_iostat", ["name": "disk"])
      return (value["bdevs"]?[0]?["bytes_written"]?.intValue ?? 0) > 12 << 20
    }
    process.kill()
    process = try softDPU(directory)
    try await peer.line("peer: script ended")
    try await peer.end()
    let console = peer.console
    #expect(!console.contains("FAILED"), "\(console.suffix(4000))")
    #expect(console.contains("discovered: 1") && console.contains("I/O errors: 0") && console.contains("err= 0"))
    process.signal(SIGTERM)
    #expect(try await process.waitForExit() == .code(0))
  }
}
