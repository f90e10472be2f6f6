#!/bin/bash
# Runs the built tests in two lanes at the same time: those of whole clouds, which wait most of their time for guests,
# BMCs and leases, and all others. Within a lane one test runs after another: servers, guests and control planes all at
# once would time each other out on two cores.
#
#   scripts/test.sh CONFIGURATION
set -uo pipefail
# Each lane is a process group of its own, so that it can be ended with all that it has started.
set -m
cd "$(dirname "$0")/.."

tests=$(swift build -c "$1" --show-bin-path)/ycloudPackageTests.xctest
[[ -x $tests ]] || {
  echo "test: $tests is missing; remedy: make build-tests" >&2
  exit 1
}

# The tests' output comes in blocks; only whole lines go on, so that those of two lanes do not mix, and colours only to a
# terminal.
plain='s/\x1b\[[0-9;]*m//g'
[[ ! -t 1 ]] || plain=''
# The longest test says something every few minutes. One that says nothing for this long hangs: its name is told, and the
# lane ends.
silence=${YCLOUD_TEST_SILENCE:-1200}
lane() {
  coproc "$tests" --testing-library swift-testing --no-parallel "$@" 2>&1
  local process=$COPROC_PID line last='' status=0
  exec {output}<&"${COPROC[0]}"
  while :; do
    if IFS= read -r -t "$silence" line <&"$output"; then
      printf '%s\n' "$line"
      case $line in *'Test '*' started.'*) last=$line ;; esac
    elif (($? > 128)); then
      printf 'Test run failed after %d s without a word; the last one that started: %s\n' "$silence" "$last"
      kill -TERM "$process"
      status=1
      break
    else
      break
    fi
  done | sed -u "$plain"
  wait "$process" || status=1
  return "$status"
}

groups=()
trap 'for group in "${groups[@]}"; do kill -TERM -- "-$group" 2>/dev/null; done; exit 130' INT TERM HUP
status=0
if (($(nproc) >= 2)); then
  lane --filter '^Acceptance\.' &
  groups+=($!)
  lane --skip '^Acceptance\.' &
  groups+=($!)
  for group in "${groups[@]}"; do wait "$group" || status=1; done
else
  lane &
  groups+=($!)
  wait "$!" || status=1
fi
exit "$status"
