// The kernel interfaces that Swift's Glibc module does not export.
#pragma once
// No _GNU_SOURCE here: it changes types such as fd_set, which then clash with Swift's Glibc module.
#include "CLinuxSpawn.h"
// The kernel's before liburing's: liburing brings a copy of it, of another version and under the same guard, and a
// module that has read the copy does not fit with swift-system's module, which has read the kernel's.
#include <linux/io_uring.h>
#include <liburing.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <linux/memfd.h>
#include <linux/vhost.h>
#include <linux/virtio_blk.h>
#include <linux/virtio_ring.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/signalfd.h>
#include <sys/timerfd.h>
#include <sys/types.h>

// Receives bytes and the descriptors that come with them (SCM_RIGHTS), close-on-exec.
// `*fd_count` holds the room in `fds` on entry and the number received on return. Descriptors beyond that room are
// closed by the kernel. Returns recvmsg's result: -1 with errno, 0 at the end of the stream.
ssize_t clinux_recv_with_fds(int socket, void *buffer, size_t length, int flags, int *fds, int *fd_count);

// Sends bytes with descriptors attached to the first of them; never raises SIGPIPE.
ssize_t clinux_send_with_fds(int socket, const void *buffer, size_t length, const int *fds, int fd_count);

// Creates anonymous memory as a file (memfd_create), close-on-exec; -1 with errno.
int clinux_memfd_create(const char *name, unsigned int flags);

// Loads and stores of memory that another process writes at the same time.
static inline uint16_t clinux_load_acquire_u16(const void *address) {
  return __atomic_load_n((const uint16_t *)address, __ATOMIC_ACQUIRE);
}
static inline uint16_t clinux_load_relaxed_u16(const void *address) {
  return __atomic_load_n((const uint16_t *)address, __ATOMIC_RELAXED);
}
static inline void clinux_store_release_u16(void *address, uint16_t value) {
  __atomic_store_n((uint16_t *)address, value, __ATOMIC_RELEASE);
}
static inline void clinux_full_fence(void) { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
static inline void clinux_release_fence(void) { __atomic_thread_fence(__ATOMIC_RELEASE); }

// Size in bytes of a block device; -1 with errno.
int64_t clinux_block_device_size(int fd);
// Logical block size in bytes of a block device; -1 with errno.
int clinux_block_device_block_size(int fd);

// Alignment that direct I/O on the file needs (statx STATX_DIOALIGN, Linux 6.1): of memory and of offsets, in bytes.
// Both are 0 where the file has no direct I/O, and 4096 where the kernel does not tell.
void clinux_direct_io_alignment(int fd, uint32_t *memory, uint32_t *offset);

// Whether the file lives in memory (tmpfs, ramfs): its I/O never waits for a device.
int clinux_is_memory_file(int fd);

// Size of the pages of a file of memory (memfd, tmpfs, hugetlbfs), in bytes; 0 where the file is another.
long clinux_memory_page_size(int fd);

// The monotonic clock in nanoseconds.
uint64_t clinux_monotonic_nanoseconds(void);

// A descriptor of a split virtqueue, read once: the other side may change it at any time.
struct clinux_descriptor {
  uint64_t address;
  uint32_t length;
  uint16_t flags;
  uint16_t next;
};
static inline struct clinux_descriptor clinux_load_descriptor(const void *address) {
  uint64_t low = __atomic_load_n((const uint64_t *)address, __ATOMIC_RELAXED);
  uint64_t high = __atomic_load_n((const uint64_t *)address + 1, __ATOMIC_RELAXED);
  struct clinux_descriptor descriptor = {
      .address = low,
      .length = (uint32_t)high,
      .flags = (uint16_t)(high >> 32),
      .next = (uint16_t)(high >> 48),
  };
  return descriptor;
}

// io_uring submissions with types that do not change between versions of liburing.
static inline void clinux_prep_rw(struct io_uring_sqe *sqe, int write, int fd, const struct iovec *vectors,
                                  unsigned count, uint64_t offset, int flags, uint64_t user_data) {
  if (count == 1) {
    io_uring_prep_rw(write ? IORING_OP_WRITE : IORING_OP_READ, sqe, fd, vectors->iov_base,
                     (unsigned)vectors->iov_len, offset);
  } else {
    io_uring_prep_rw(write ? IORING_OP_WRITEV : IORING_OP_READV, sqe, fd, vectors, count, offset);
  }
  sqe->rw_flags = flags;
  sqe->user_data = user_data;
}
static inline void clinux_prep_datasync(struct io_uring_sqe *sqe, int fd, uint64_t user_data) {
  io_uring_prep_fsync(sqe, fd, IORING_FSYNC_DATASYNC);
  sqe->user_data = user_data;
}
static inline void clinux_prep_fallocate(struct io_uring_sqe *sqe, int fd, int mode, uint64_t offset, uint64_t length,
                                         uint64_t user_data) {
  io_uring_prep_rw(IORING_OP_FALLOCATE, sqe, fd, (const void *)(uintptr_t)length, (unsigned)mode, offset);
  sqe->user_data = user_data;
}
static inline void clinux_prep_write(struct io_uring_sqe *sqe, int fd, const void *buffer, unsigned length,
                                     uint64_t user_data) {
  io_uring_prep_rw(IORING_OP_WRITE, sqe, fd, buffer, length, 0);
  sqe->user_data = user_data;
}
static inline void clinux_prep_poll(struct io_uring_sqe *sqe, int fd, unsigned mask, uint64_t user_data) {
  io_uring_prep_poll_multishot(sqe, fd, mask);
  sqe->user_data = user_data;
}
static inline void clinux_prep_poll_once(struct io_uring_sqe *sqe, int fd, unsigned mask, uint64_t user_data) {
  io_uring_prep_poll_add(sqe, fd, mask);
  sqe->user_data = user_data;
}
static inline void clinux_prep_cancel(struct io_uring_sqe *sqe, uint64_t target, uint64_t user_data) {
  io_uring_prep_rw(IORING_OP_ASYNC_CANCEL, sqe, -1, (const void *)(uintptr_t)target, 0, 0);
  sqe->user_data = user_data;
}

// A ring of its own for the calling thread, with the flags that the kernel has; 0 or a negative error number.
int clinux_ring_create(unsigned entries, struct io_uring *ring);

// Ranges of memory that are shared with a process that is not trusted. Where such a process shortens the file below
// a range, a touch would end this process with SIGBUS: the handler puts a private page of zeros there instead.
void clinux_guard_install(void);
// `page_size` is that of the range's file; -1 where the table of ranges is full.
int clinux_guard_add(void *start, size_t length, size_t page_size);
void clinux_guard_remove(void *start, size_t length);

// open with O_DIRECT, close-on-exec; -1 with errno.
int clinux_open_direct(const char *path, int flags);
// fallocate(2): 0, or -1 with errno.
int clinux_fallocate(int fd, int mode, uint64_t offset, uint64_t length);
// How many of a file's first bytes have space of their own or of another's, and how many of these are shared with
// another file: 0, or -1 with errno where the file system does not tell.
int clinux_file_extents(int fd, uint64_t length, uint64_t *allocated, uint64_t *shared);
// Names the calling thread; up to 15 bytes are kept.
void clinux_name_thread(const char *name);
// Rows and columns of the terminal behind a descriptor, 0 where they are not known; -1 where it has no terminal. (Which
// module owns `struct winsize` depends on the C library's version, so that Swift that names it compiles not everywhere.)
int clinux_terminal_size(int fd, unsigned short *rows, unsigned short *columns);
// Takes a connection from a listening socket: non-blocking, close-on-exec; -1 with errno.
int clinux_accept(int listener);

// Listens at a numeric address: non-blocking, close-on-exec, SO_REUSEADDR; a negative error number where that fails.
int clinux_tcp_listen(const char *host, uint16_t port);
// Connects to a numeric address without waiting for it; a negative error number where that fails at once.
int clinux_tcp_connect(const char *host, uint16_t port);
// The same from an address and port of this machine; port 0 is the system's choice.
int clinux_tcp_connect_from(const char *source, uint16_t source_port, const char *host, uint16_t port);
// Has a TCP socket send what is written at once, and notice within a minute that its peer has vanished; does nothing for
// other sockets.
void clinux_tune_tcp(int fd);
// Has the kernel drop what was not sent when the socket is closed, instead of sending it later.
void clinux_discard_on_close(int fd);

// Writes "ADDRESS:PORT" of a TCP socket's peer: its length, 0 for sockets of other kinds, -1 where there is no peer.
int clinux_peer_name(int fd, char *name, size_t size);

// CRC-32C (Castagnoli) of `length` bytes, continuing from `crc` (0 to begin), with the processor's instruction where it
// has one.
uint32_t clinux_crc32c(uint32_t crc, const void *data, size_t length);

// AES-XTS (IEEE 1619) of whole blocks in place, by OpenSSL. Not for several threads at a time.
struct clinux_xts;
// `keys` is the data key and the tweak key, one behind the other: 32 bytes for AES-128, 64 for AES-256. NULL where the
// length is another, the two are the same, or there is no memory.
struct clinux_xts *clinux_xts_new(const unsigned char *keys, size_t length);
void clinux_xts_free(struct clinux_xts *cipher);
// One block, whose number is the tweak; 0, or -1 where the library refuses.
int clinux_xts_crypt(struct clinux_xts *cipher, int encrypt, uint64_t block, unsigned char *data, size_t length);

// TLS 1.2 and 1.3, the server's side, by OpenSSL. The socket is the caller's: bytes go in and out through memory that is
// lent for a call. A context may be used by one thread at a time, and outlives nothing: its connections keep it.
struct clinux_tls_context;
struct clinux_tls;
enum clinux_tls_file {
  CLINUX_TLS_NONE,
  CLINUX_TLS_CERTIFICATE,
  CLINUX_TLS_KEY,
  CLINUX_TLS_CA,
  CLINUX_TLS_SHARED_KEYS,
};
// Reads the files, all PEM: the certificate with its chain and its key, or a file of pre-shared keys (lines NAME:HEX).
// With `ca` clients have to show a certificate that it signed. NULL where a file is not sound: `failed` says which.
struct clinux_tls_context *clinux_tls_context_new(const char *certificate, const char *key, const char *ca,
                                                  const char *shared_keys, enum clinux_tls_file *failed);
void clinux_tls_context_free(struct clinux_tls_context *context);
// Why the last call of this thread failed.
void clinux_tls_reason(char *text, size_t capacity);

// A connection that waits for its client's first message; NULL where there is no memory.
struct clinux_tls *clinux_tls_new(struct clinux_tls_context *context);
void clinux_tls_free(struct clinux_tls *tls);
// Whether the handshake is done.
int clinux_tls_is_ready(const struct clinux_tls *tls);
const char *clinux_tls_version(const struct clinux_tls *tls);
// Keeps the memory for records from now on, instead of giving it back whenever it is empty.
void clinux_tls_keep_buffers(struct clinux_tls *tls);
// What came from the peer. It is read, and then forgotten, by `clinux_tls_read`.
void clinux_tls_lend_input(struct clinux_tls *tls, const void *bytes, size_t length);
// Where the next calls put what is for the peer; taking it ends the loan and tells how many bytes are there.
void clinux_tls_lend_output(struct clinux_tls *tls, void *memory, size_t capacity);
size_t clinux_tls_take_output(struct clinux_tls *tls);
// Goes on with the handshake where it is not done, and decrypts: the number of bytes, 0 where the peer has ended the
// session, -EAGAIN where more input is needed, -ENOBUFS where the output has no room, or -EPROTO.
ssize_t clinux_tls_read(struct clinux_tls *tls, void *data, size_t length);
// Encrypts up to 16384 bytes as one record, which takes up to 16896 bytes of output: as `clinux_tls_read`.
ssize_t clinux_tls_write(struct clinux_tls *tls, const void *data, size_t length);
// Tells the peer that nothing more comes.
void clinux_tls_finish(struct clinux_tls *tls);
