#define _GNU_SOURCE
#include "CLinuxSpawn.h"
#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <sys/syscall.h>
#include <unistd.h>

int clinux_spawn(const char *path, char *const arguments[], char *const environment[], int input, const char *output,
                 const char *directory, int new_session, pid_t *pid) {
  posix_spawn_file_actions_t actions;
  posix_spawnattr_t attributes;
  int status = posix_spawn_file_actions_init(&actions);
  if (status != 0) return status;
  status = posix_spawnattr_init(&attributes);
  if (status != 0) {
    posix_spawn_file_actions_destroy(&actions);
    return status;
  }

  // dup2 of a descriptor onto itself clears close-on-exec here, so `input` may be 0 as well.
  status = input < 0 ? posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0)
                     : posix_spawn_file_actions_adddup2(&actions, input, 0);
  if (status == 0) {
    status = posix_spawn_file_actions_addopen(&actions, 1, output != NULL ? output : "/dev/null",
                                              O_WRONLY | O_CREAT | O_APPEND, 0600);
  }
  if (status == 0) status = posix_spawn_file_actions_adddup2(&actions, 1, 2);
  if (status == 0) status = posix_spawn_file_actions_addclosefrom_np(&actions, 3);
  if (status == 0 && directory != NULL) status = posix_spawn_file_actions_addchdir_np(&actions, directory);

  sigset_t none, all;
  sigemptyset(&none);
  sigfillset(&all);
  short flags = POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF;
  flags |= new_session ? POSIX_SPAWN_SETSID : POSIX_SPAWN_SETPGROUP;
  if (status == 0) status = posix_spawnattr_setsigmask(&attributes, &none);
  if (status == 0) status = posix_spawnattr_setsigdefault(&attributes, &all);
  if (status == 0) status = posix_spawnattr_setpgroup(&attributes, 0);
  if (status == 0) status = posix_spawnattr_setflags(&attributes, flags);
  if (status == 0) status = posix_spawn(pid, path, &actions, &attributes, arguments, environment);

  posix_spawnattr_destroy(&attributes);
  posix_spawn_file_actions_destroy(&actions);
  return status;
}

int clinux_pipe(int ends[2]) { return pipe2(ends, O_CLOEXEC); }

int clinux_pidfd_open(pid_t pid) { return (int)syscall(SYS_pidfd_open, pid, 0); }
