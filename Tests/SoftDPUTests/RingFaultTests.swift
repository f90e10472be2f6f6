import Glibc
import JSON
import JSONRPC
import TestSupport
import Testing
import VhostFrontend

/// The data plane on a kernel that is short of memory: a library in front of liburing replaces some submissions by
/// no-operations that the kernel answers with EAGAIN or ENOMEM (IORING_NOP_INJECT_RESULT, Linux 6.10).
@Suite(.enabled(if: kernelInjectsResults(), "the kernel cannot inject results before 6.10"))
struct RingFaultTests {
  /// Every third request to a file and every second poll fails; the file named by RING_FAULTS has a byte for each.
  private static let library = """
    #define _GNU_SOURCE
    #include <dlfcn.h>
    #include <errno.h>
    #include <fcntl.h>
    #include <liburing.h>
    #include <stdlib.h>
    #include <unistd.h>

    static _Atomic unsigned requests, polls;
    static _Atomic int record = -1;

    static void spoil(struct io_uring_sqe *sqe, int result, char kind) {
      if (record < 0) record = open(getenv("RING_FAULTS"), O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
      if (write(record, &kind, 1) != 1) abort();
      __u64 data = sqe->user_data;
      io_uring_prep_nop(sqe);
      sqe->user_data = data;
      sqe->rw_flags = 1;
      sqe->len = (unsigned)result;
    }

    static void meddle(struct io_uring *ring) {
      for (unsigned i = ring->sq.sqe_head; i != ring->sq.sqe_tail; i++) {
        struct io_uring_sqe *sqe = &ring->sq.sqes[i & *ring->sq.kring_mask];
        int tag = sqe->user_data & 7;
        if (sqe->opcode == IORING_OP_POLL_ADD) {
          if (polls++ % 2 == 0) spoil(sqe, polls % 4 == 1 ? -ENOMEM : -EAGAIN, 'p');
        } else if (tag == 0 && sqe->opcode != IORING_OP_NOP && requests++ % 3 == 0) {
          spoil(sqe, requests % 2 ? -EAGAIN : -ENOMEM, 'r');
        }
      }
    }

    int io_uring_submit(struct io_uring *ring) {
      meddle(ring);
      return ((int (*)(struct io_uring *))dlsym(RTLD_NEXT, "io_uring_submit"))(ring);
    }
    int io_uring_submit_and_get_events(struct io_uring *ring) {
      meddle(ring);
      return ((int (*)(struct io_uring *))dlsym(RTLD_NEXT, "io_uring_submit_and_get_events"))(ring);
    }
    int io_uring_submit_and_wait(struct io_uring *ring, unsigned count) {
      meddle(ring);
      return ((int (*)(struct io_uring *, unsigned))dlsym(RTLD_NEXT, "io_uring_submit_and_wait"))(ring, count);
    }
    """

  @Test(.timeLimit(.minutes(2)))
  func noRequestIsLostAndNoWatchIsDeafWhenTheKernelHasNoMemory() async throws {
    let folder = try TemporaryDirectory()
    try folder.write("faults.c", Self.library)
    try await ChildProcess.run(
      "cc", ["-shared", "-fPIC", "-O1", "-o", folder.file("faults.so"), folder.file("faults.c"), "-ldl"])
    let disk = folder.file("disk")
    let descriptor = open(disk, O_RDWR | O_CREAT | O_CLOEXEC, 0o600)
    try #require(descriptor >= 0 && ftruncate(descriptor, 8 << 20) == 0)
    defer { close(descriptor) }
    let child = try ChildProcess(
      try TestEnvironment.builtProduct("ycloud"),
      [
        "softdpu", "--rpc-socket", folder.file("rpc.sock"), "--vhost-dir", folder.file("bus"), "--state-dir",
        folder.file("state"),
      ], environment: ["LD_PRELOAD": folder.file("faults.so"), "RING_FAULTS": folder.file("faults")])
    let client = JSONRPCClient(path: folder.file("rpc.sock"))
    try await eventually(within: .seconds(20), "softdpu answers: \(child.output)") {
      _ = try await client.call("spdk_get_version")
      return true
    }
    _ = try await client.call(
      "bdev_aio_create", ["name": "disk", "filename": .string(disk), "block_size": 512, "fallocate": true])
    _ = try await client.call("vhost_create_blk_controller", ["ctrlr": "blk-00-disk", "dev_name": "disk"])

    let frontend = try VhostFrontend(path: folder.file("bus") + "/blk-00-disk", queues: 1, slotLength: 65536)
    try frontend.start()
    var random = SeededGenerator(seed: 9)
    for round in 0..<60 {
      let sector = UInt64(round * 8)
      let data = random.bytes(4096)
      #expect(try frontend.perform(VhostFrontend.writeType, sector: sector, write: data).status == statusOK)
      if round % 5 == 0 { #expect(try frontend.perform(VhostFrontend.flushType).status == statusOK) }
      let read = try frontend.perform(VhostFrontend.readType, sector: sector, read: 4096)
      #expect(read.status == statusOK && read.data == data)
    }
    let range: [UInt8] = [0, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0]
    #expect(try frontend.perform(VhostFrontend.discardType, write: range).status == statusOK)
    let faults = contentsOfFile(folder.file("faults")) ?? ""
    #expect(faults.filter { $0 == "r" }.count > 30 && faults.filter { $0 == "p" }.count > 3, "\(faults)")
    child.kill()
  }
}

private func kernelInjectsResults() -> Bool {
  let release = contentsOfFile("/proc/sys/kernel/osrelease") ?? ""
  let numbers = release.split(whereSeparator: { !$0.isNumber }).prefix(2).compactMap { Int($0) }
  return numbers.count == 2 && (numbers[0], numbers[1]) >= (6, 10)
}
