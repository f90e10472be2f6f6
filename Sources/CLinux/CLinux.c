#define _GNU_SOURCE
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "CLinux.h"

#include <linux/fiemap.h>
#include <linux/fs.h>

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <time.h>
#include <unistd.h>

#define MAX_FDS 64

ssize_t clinux_recv_with_fds(int socket, void *buffer, size_t length, int flags, int *fds, int *fd_count) {
  union {
    struct cmsghdr header;
    char bytes[CMSG_SPACE(sizeof(int) * MAX_FDS)];
  } control;
  struct iovec iov = {.iov_base = buffer, .iov_len = length};
  int room = *fd_count < MAX_FDS ? *fd_count : MAX_FDS;
  struct msghdr message = {
      .msg_iov = &iov,
      .msg_iovlen = 1,
      .msg_control = room > 0 ? control.bytes : NULL,
      .msg_controllen = room > 0 ? CMSG_SPACE(sizeof(int) * (size_t)room) : 0,
  };
  ssize_t result;
  *fd_count = 0;
  do {
    result = recvmsg(socket, &message, flags | MSG_CMSG_CLOEXEC);
  } while (result < 0 && errno == EINTR);
  if (result < 0) return result;
  for (struct cmsghdr *header = CMSG_FIRSTHDR(&message); header != NULL; header = CMSG_NXTHDR(&message, header)) {
    if (header->cmsg_level != SOL_SOCKET || header->cmsg_type != SCM_RIGHTS) continue;
    int count = (int)((header->cmsg_len - CMSG_LEN(0)) / sizeof(int));
    for (int i = 0; i < count; i++) {
      int fd;
      memcpy(&fd, CMSG_DATA(header) + sizeof(int) * (size_t)i, sizeof(int));
      if (*fd_count < room) {
        fds[(*fd_count)++] = fd;
      } else {
        close(fd);
      }
    }
  }
  return result;
}

ssize_t clinux_send_with_fds(int socket, const void *buffer, size_t length, const int *fds, int fd_count) {
  union {
    struct cmsghdr header;
    char bytes[CMSG_SPACE(sizeof(int) * MAX_FDS)];
  } control;
  struct iovec iov = {.iov_base = (void *)buffer, .iov_len = length};
  struct msghdr message = {.msg_iov = &iov, .msg_iovlen = 1};
  ssize_t result;
  if (fd_count < 0 || fd_count > MAX_FDS) {
    errno = EINVAL;
    return -1;
  }
  if (fd_count > 0) {
    memset(&control, 0, sizeof(control));
    message.msg_control = control.bytes;
    message.msg_controllen = CMSG_SPACE(sizeof(int) * (size_t)fd_count);
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof(int) * (size_t)fd_count);
    memcpy(CMSG_DATA(header), fds, sizeof(int) * (size_t)fd_count);
  }
  do {
    result = sendmsg(socket, &message, MSG_NOSIGNAL);
  } while (result < 0 && errno == EINTR);
  return result;
}

int clinux_memfd_create(const char *name, unsigned int flags) { return memfd_create(name, flags | MFD_CLOEXEC); }

int64_t clinux_block_device_size(int fd) {
  uint64_t size = 0;
  return ioctl(fd, BLKGETSIZE64, &size) == 0 ? (int64_t)size : -1;
}

int clinux_block_device_block_size(int fd) {
  int size = 0;
  return ioctl(fd, BLKSSZGET, &size) == 0 ? size : -1;
}

void clinux_direct_io_alignment(int fd, uint32_t *memory, uint32_t *offset) {
  // struct statx by its offsets: the C library's may be older than these members.
  enum { MASK = 0, MEMORY_ALIGN = 152, OFFSET_ALIGN = 156, SIZE = 256, DIOALIGN = 0x2000 };
  _Alignas(8) unsigned char data[SIZE] = {0};
  uint32_t mask = 0;
  *memory = 4096;
  *offset = 4096;
  if (syscall(SYS_statx, fd, "", AT_EMPTY_PATH, DIOALIGN, data) != 0) return;
  memcpy(&mask, data + MASK, sizeof(mask));
  if (!(mask & DIOALIGN)) return;
  memcpy(memory, data + MEMORY_ALIGN, sizeof(*memory));
  memcpy(offset, data + OFFSET_ALIGN, sizeof(*offset));
}

int clinux_is_memory_file(int fd) {
  enum { TMPFS = 0x01021994, RAMFS = 0x858458f6 };
  struct statfs status;
  if (fstatfs(fd, &status) != 0) return 0;
  return (uint32_t)status.f_type == TMPFS || (uint32_t)status.f_type == RAMFS;
}

long clinux_memory_page_size(int fd) {
  enum { TMPFS = 0x01021994, HUGETLBFS = 0x958458f6 };
  struct statfs status;
  if (fstatfs(fd, &status) != 0) return 0;
  if ((uint32_t)status.f_type == TMPFS) return sysconf(_SC_PAGESIZE);
  return (uint32_t)status.f_type == (uint32_t)HUGETLBFS ? (long)status.f_bsize : 0;
}

uint64_t clinux_monotonic_nanoseconds(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

int clinux_ring_create(unsigned entries, struct io_uring *ring) {
  // The best first: completions run only when the thread asks for them (Linux 6.1), then older ways.
  static const unsigned choices[] = {
      IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN,
      IORING_SETUP_COOP_TASKRUN,
      0,
  };
  int result = -EINVAL;
  for (unsigned i = 0; i < sizeof(choices) / sizeof(choices[0]) && result == -EINVAL; i++) {
    struct io_uring_params parameters;
    memset(&parameters, 0, sizeof(parameters));
    parameters.flags = choices[i] | IORING_SETUP_CQSIZE | IORING_SETUP_CLAMP;
    parameters.cq_entries = entries * 4;
    result = io_uring_queue_init_params(entries, ring, &parameters);
  }
  return result;
}

int clinux_terminal_size(int fd, unsigned short *rows, unsigned short *columns) {
  struct winsize size;
  if (ioctl(fd, TIOCGWINSZ, &size) != 0) return -1;
  *rows = size.ws_row;
  *columns = size.ws_col;
  return 0;
}

int clinux_open_direct(const char *path, int flags) { return open(path, flags | O_DIRECT | O_CLOEXEC); }

int clinux_fallocate(int fd, int mode, uint64_t offset, uint64_t length) {
  return fallocate(fd, mode, (off_t)offset, (off_t)length);
}

int clinux_file_extents(int fd, uint64_t length, uint64_t *allocated, uint64_t *shared) {
  enum { count = 64 };
  union {
    struct fiemap map;
    char room[sizeof(struct fiemap) + count * sizeof(struct fiemap_extent)];
  } request;
  *allocated = *shared = 0;
  uint64_t start = 0;
  while (start < length) {
    memset(&request, 0, sizeof(request));
    request.map.fm_start = start;
    request.map.fm_length = length - start;
    request.map.fm_extent_count = count;
    if (ioctl(fd, FS_IOC_FIEMAP, &request.map) != 0) return -1;
    if (request.map.fm_mapped_extents == 0) return 0;
    for (unsigned i = 0; i < request.map.fm_mapped_extents; i++) {
      const struct fiemap_extent *extent = &request.map.fm_extents[i];
      *allocated += extent->fe_length;
      if (extent->fe_flags & FIEMAP_EXTENT_SHARED) *shared += extent->fe_length;
      start = extent->fe_logical + extent->fe_length;
      if (extent->fe_flags & FIEMAP_EXTENT_LAST) return 0;
    }
  }
  return 0;
}

void clinux_name_thread(const char *name) {
  char kept[16];
  snprintf(kept, sizeof(kept), "%s", name);
  pthread_setname_np(pthread_self(), kept);
}

int clinux_accept(int listener) {
  int fd;
  do {
    fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
  } while (fd < 0 && errno == EINTR);
  return fd;
}

static int tcp_socket(const char *host, uint16_t port, int (*act)(int, const struct sockaddr *, socklen_t)) {
  char service[8];
  snprintf(service, sizeof(service), "%u", (unsigned)port);
  struct addrinfo hints = {.ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM, .ai_flags = AI_NUMERICHOST};
  struct addrinfo *found = NULL;
  if (getaddrinfo(host, service, &hints, &found) != 0) return -EINVAL;
  int fd = socket(found->ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  int one = 1;
  if (fd >= 0) {
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
    if (act(fd, found->ai_addr, found->ai_addrlen) != 0 && errno != EINPROGRESS) {
      int error = errno;
      close(fd);
      errno = error;
      fd = -1;
    }
  }
  int result = fd >= 0 ? fd : -errno;
  freeaddrinfo(found);
  return result;
}

static int bind_and_listen(int fd, const struct sockaddr *address, socklen_t length) {
  return bind(fd, address, length) == 0 ? listen(fd, 1024) : -1;
}

int clinux_tcp_listen(const char *host, uint16_t port) { return tcp_socket(host, port, bind_and_listen); }

int clinux_tcp_connect(const char *host, uint16_t port) { return tcp_socket(host, port, connect); }

int clinux_tcp_connect_from(const char *source, uint16_t source_port, const char *host, uint16_t port) {
  int fd = tcp_socket(source, source_port, bind);
  if (fd < 0) return fd;
  char service[8];
  snprintf(service, sizeof(service), "%u", (unsigned)port);
  struct addrinfo hints = {.ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM, .ai_flags = AI_NUMERICHOST};
  struct addrinfo *found = NULL;
  int error = getaddrinfo(host, service, &hints, &found) == 0 ? 0 : EINVAL;
  if (error == 0 && connect(fd, found->ai_addr, found->ai_addrlen) != 0 && errno != EINPROGRESS) error = errno;
  if (found) freeaddrinfo(found);
  if (error == 0) return fd;
  close(fd);
  return -error;
}

int clinux_peer_name(int fd, char *name, size_t size) {
  struct sockaddr_storage address;
  socklen_t length = sizeof(address);
  char host[INET6_ADDRSTRLEN];
  if (getpeername(fd, (struct sockaddr *)&address, &length) != 0) return -1;
  if (address.ss_family == AF_INET) {
    struct sockaddr_in *in = (struct sockaddr_in *)&address;
    if (!inet_ntop(AF_INET, &in->sin_addr, host, sizeof(host))) return -1;
    return snprintf(name, size, "%s:%u", host, ntohs(in->sin_port));
  }
  if (address.ss_family == AF_INET6) {
    struct sockaddr_in6 *in = (struct sockaddr_in6 *)&address;
    if (!inet_ntop(AF_INET6, &in->sin6_addr, host, sizeof(host))) return -1;
    return snprintf(name, size, "[%s]:%u", host, ntohs(in->sin6_port));
  }
  return 0;
}

void clinux_tune_tcp(int fd) {
  int one = 1;
  int idle = 30, interval = 10, count = 3, milliseconds = 60000;
  if (setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one)) != 0) return;
  setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &one, sizeof(one));
  setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &idle, sizeof(idle));
  setsockopt(fd, IPPROTO_TCP, TCP_KEEPINTVL, &interval, sizeof(interval));
  setsockopt(fd, IPPROTO_TCP, TCP_KEEPCNT, &count, sizeof(count));
  setsockopt(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &milliseconds, sizeof(milliseconds));
}

void clinux_discard_on_close(int fd) {
  struct linger none = {.l_onoff = 1, .l_linger = 0};
  setsockopt(fd, SOL_SOCKET, SO_LINGER, &none, sizeof(none));
}
