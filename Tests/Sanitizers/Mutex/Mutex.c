// Tells the thread sanitizer about Swift's Mutex.
//
// A mutex that nobody else wants is taken and given back by atomic operations in the program, which the sanitizer sees.
// One that is wanted by two goes through these functions of libswiftSynchronization, which is not instrumented, and
// the kernel (futexes with priority inheritance): without a word here each such handover would look like a race.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdint.h>

#define CONTEXT __attribute__((swift_context)) void *self
#define LOCK "$s15Synchronization12_MutexHandleV9_lockSlowyys6UInt32VF"
#define UNLOCK "$s15Synchronization12_MutexHandleV11_unlockSlowyyF"

void __tsan_acquire(void *);
void __tsan_release(void *);

typedef __attribute__((swiftcall)) void (*lock_slow)(uint32_t, CONTEXT);
typedef __attribute__((swiftcall)) void (*unlock_slow)(CONTEXT);

__attribute__((swiftcall)) void ycloud_lock_slow(uint32_t state, CONTEXT) __asm__(LOCK);
__attribute__((swiftcall)) void ycloud_unlock_slow(CONTEXT) __asm__(UNLOCK);

static lock_slow real_lock;
static unlock_slow real_unlock;

__attribute__((constructor)) static void find(void) {
  real_lock = (lock_slow)dlsym(RTLD_NEXT, LOCK);
  real_unlock = (unlock_slow)dlsym(RTLD_NEXT, UNLOCK);
}

__attribute__((swiftcall)) void ycloud_lock_slow(uint32_t state, CONTEXT) {
  real_lock(state, self);
  __tsan_acquire(self);
}

__attribute__((swiftcall)) void ycloud_unlock_slow(CONTEXT) {
  __tsan_release(self);
  real_unlock(self);
}
