#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "CLinux.h"

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <string.h>
#include <unistd.h>

// The handler reads the table without a lock, so that entries are published with their length last.
enum { ROOM = 4096 };
static struct {
  _Atomic uintptr_t start;
  _Atomic size_t length;
  _Atomic size_t page_size;
} ranges[ROOM];
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct sigaction previous;

static void handle(int number, siginfo_t *info, void *context) {
  (void)context;
  uintptr_t address = (uintptr_t)info->si_addr;
  for (int i = 0; i < ROOM; i++) {
    size_t length = atomic_load_explicit(&ranges[i].length, memory_order_acquire);
    uintptr_t start = atomic_load_explicit(&ranges[i].start, memory_order_relaxed);
    if (length == 0 || address < start || address - start >= length) continue;
    size_t page_size = atomic_load_explicit(&ranges[i].page_size, memory_order_relaxed);
    void *page = (void *)(address & ~(uintptr_t)(page_size - 1));
    if (mmap(page, page_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == page) return;
  }
  // Not ours: as without this handler.
  sigaction(number, &previous, NULL);
}

void clinux_guard_install(void) {
  static _Atomic int installed;
  if (atomic_exchange(&installed, 1)) return;
  struct sigaction action;
  memset(&action, 0, sizeof(action));
  action.sa_sigaction = handle;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK;
  sigaction(SIGBUS, &action, &previous);
}

int clinux_guard_add(void *start, size_t length, size_t page_size) {
  int result = -1;
  pthread_mutex_lock(&lock);
  for (int i = 0; i < ROOM && result != 0; i++) {
    if (atomic_load_explicit(&ranges[i].length, memory_order_relaxed) != 0) continue;
    atomic_store_explicit(&ranges[i].start, (uintptr_t)start, memory_order_relaxed);
    atomic_store_explicit(&ranges[i].page_size, page_size, memory_order_relaxed);
    atomic_store_explicit(&ranges[i].length, length, memory_order_release);
    result = 0;
  }
  pthread_mutex_unlock(&lock);
  return result;
}

void clinux_guard_remove(void *start, size_t length) {
  pthread_mutex_lock(&lock);
  for (int i = 0; i < ROOM; i++) {
    if (atomic_load_explicit(&ranges[i].start, memory_order_relaxed) != (uintptr_t)start ||
        atomic_load_explicit(&ranges[i].length, memory_order_relaxed) != length)
      continue;
    atomic_store_explicit(&ranges[i].length, 0, memory_order_release);
    break;
  }
  pthread_mutex_unlock(&lock);
}
