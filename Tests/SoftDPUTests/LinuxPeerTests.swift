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

    init(_ script: String, processors: Int = 2, forwarding port: Int? = nil) async throws {
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
          "user,id=net" + (port.map { ",hostfwd=tcp:127.0.0.1:\($0)-10.0.2.15:4420" } ?? ""), "-device",
          "virtio-net-pci,netdev=net", "-serial", "file:\(directory.file("console"))",
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
    let port = try TestEnvironment.freePort()
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

  private static let target = """
    set -e
    truncate -s 64M /tmp/disk
    cd /sys/kernel/config/nvmet
    mkdir subsystems/\(subsystem)
    echo 1 >subsystems/\(subsystem)/attr_allow_any_host
    mkdir subsystems/\(subsystem)/namespaces/1
    cd subsystems/\(subsystem)/namespaces/1
    echo -n /tmp/disk >device_path
    echo 1 >buffered_io
    echo 1 >enable
    cd /sys/kernel/config/nvmet
    mkdir ports/1
    echo tcp >ports/1/addr_trtype
    echo ipv4 >ports/1/addr_adrfam
    echo 10.0.2.15 >ports/1/addr_traddr
    echo 4420 >ports/1/addr_trsvcid
    ln -s /sys/kernel/config/nvmet/subsystems/\(subsystem) ports/1/subsystems/
    echo "serving"
    # Until the disk has what the host writes last.
    while [ "$(dd if=/tmp/disk bs=512 skip=131071 count=1 2>/dev/null | tr -d '\\0' | wc -c)" = 0 ]; do sleep 1; done
    echo "written: $(md5sum </tmp/disk)"
    """

  /// The other way round: our initiator, and Linux's target (nvmet) in the guest.
  @Test(.timeLimit(.minutes(4)), arguments: [[:], ["hdgst": true, "ddgst": true]] as [JSONValue])
  func ourInitiatorUsesLinuxsDisks(_ options: JSONValue) async throws {
    let port = try TestEnvironment.freePort()
    let peer = try await Peer(Self.target, forwarding: port)
    try await peer.line("serving")
    let target = try Target(.memory)
    var parameters: JSONValue = [
      "name": "linux", "trtype": "TCP", "adrfam": "IPv4", "traddr": "127.0.0.1", "trsvcid": .string("\(port)"),
      "subnqn": .string(Self.subsystem),
    ]
    for (key, value) in options.objectValue ?? [:] { parameters[key] = value }
    #expect(try await target.client.call("bdev_nvme_attach_controller", parameters) == ["linuxn1"])
    let uri = try await NBDTests.export(target, "linuxn1")
    _ = try await NBDTests.io(
      uri, "write -P 1 0 8M", "write -P 2 1M 4k", "write -f -P 3 2M 512", "flush", "read -P 1 2049k 512k",
      "read -P 2 1M 4k", "read -P 3 2M 512", "discard 4M 1M", "write -z 6M 64k", "read -P 0 6M 64k")
    _ = try await NBDTests.io(uri, "write -P 1 0 16M", "write -z 16M 47M", "write -P 1 63M 1M", "flush")
    try await peer.line("written:")
    let expected = try await ChildProcess.run(
      "sh",
      [
        "-c",
        "{ head -c 16777216 /dev/zero | tr '\\0' '\\1'; head -c 49283072 /dev/zero; "
          + "head -c 1048576 /dev/zero | tr '\\0' '\\1'; } | md5sum",
      ])
    #expect(peer.console.contains("written: \(expected.prefix(32))"), "\(peer.console.suffix(2000))")
    _ = try await target.client.call("nbd_stop_disk", ["nbd_device": .string(target.directory.file("linuxn1.sock"))])
    _ = try await target.client.call("bdev_nvme_detach_controller", ["name": "linux"])
    try await peer.end()
  }
}
