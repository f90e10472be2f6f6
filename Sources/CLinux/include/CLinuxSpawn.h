// Starting a program with nothing inherited: the GNU parts of posix_spawn that Swift's Glibc module does not export.
#pragma once
#include <sys/types.h>

// Starts `path` with the given argument and environment vectors (each ended by NULL) and stores its process id.
//
// - standard input: `input`, or /dev/null when that is negative
// - standard output and error: appended to the file `output` (created with mode 0600), or /dev/null when NULL
// - no other descriptor is inherited; no signal is blocked or ignored
// - `directory`: the working directory, NULL for the caller's
// - `new_session`: a session of its own (survives the caller's terminal), otherwise only a process group of its own
//
// Returns 0 or an errno value.
int clinux_spawn(const char *path, char *const arguments[], char *const environment[], int input, const char *output,
                 const char *directory, int new_session, pid_t *pid);

// A pipe whose two ends are close-on-exec; 0, or -1 with errno.
int clinux_pipe(int ends[2]);

// A descriptor that becomes readable when the process ends (pidfd_open), close-on-exec; -1 with errno.
int clinux_pidfd_open(pid_t pid);
