#!/usr/bin/env bash
# The data plane's tests and those of JSON-RPC with the address sanitizer, then with the thread sanitizer. Without
# guests; where a test starts softdpu as a process of its own, that is the ordinary one of `make build`.
# usage: sanitize.sh [address|thread ...]
set -uo pipefail
cd "$(dirname "$0")/.."
checks=${*:-address thread}
# Those that need a guest, or look at nothing but a process of its own.
skip='GuestTests|LinuxPeerTests|OfficialClient|LvolCrashTests|LvolWriteCrashTests|HalfOpenTests|NetworkFaultTests'
export SWIFT_BACKTRACE=enable=no YCLOUD_PROGRAMS=$PWD/.build/release
export ASAN_OPTIONS=detect_leaks=0:detect_stack_use_after_return=0
export TSAN_OPTIONS=suppressions=$PWD/Tests/Sanitizers/thread.txt:history_size=4:second_deadlock_stack=1
failed=
for check in $checks; do
  scratch=.build-$check
  YCLOUD_CHECKS=$check swift build -c release --build-tests --scratch-path "$scratch" --sanitize="$check" || exit 1
  log=$scratch/$check.log
  timeout 3000 "$scratch/release/ycloudPackageTests.xctest" --testing-library swift-testing --no-parallel \
    --skip "$skip" >"$log" 2>&1
  status=$?
  found=$(grep -acE '(ERROR: AddressSanitizer|WARNING: ThreadSanitizer)' "$log")
  echo "$check: tests ended with $status, $found reports; $(grep -a 'Test run with' "$log" | tail -n 1)"
  if [ "$status" -ne 0 ] || [ "$found" -ne 0 ]; then
    failed=1
    grep -aE 'SUMMARY:|recorded an issue' "$log" | sort | uniq -c | sort -rn | head -n 30
  fi
done
[ -z "$failed" ]
