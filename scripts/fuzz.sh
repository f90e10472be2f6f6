#!/usr/bin/env bash
# Every fuzz target under libFuzzer with the address sanitizer, one after the other. At the end of each, what it has opened
# must be closed, and no memory may be left that nothing points to. What is found stands in .build-fuzz/finds; inputs that
# reach new code are kept in .build-fuzz/corpus.
# usage: fuzz.sh SECONDS [TARGET...]
set -uo pipefail
cd "$(dirname "$0")/.."
seconds=${1:-60}
shift
targets=${*:-json rpc state lvol nbd nvmf initiator vhost}
scratch=.build-fuzz
mkdir -p "$scratch/finds" "$scratch/corpus"
YCLOUD_CHECKS=fuzz swift build -c release --scratch-path "$scratch" --sanitize=fuzzer --sanitize=address -Xswiftc -sanitize-coverage=edge,inline-8bit-counters,pc-table,trace-cmp --product ycloud-fuzz ||
  exit 1
# A crash is told by the sanitizer; Swift's own report would wait for a terminal.
export SWIFT_BACKTRACE=enable=no ASAN_OPTIONS=detect_leaks=1:allocator_may_return_null=1
export LSAN_OPTIONS=suppressions=$PWD/Tests/Sanitizers/leak.txt:print_suppressions=0
# libFuzzer's own look after each input takes what the data plane keeps for later as lost; at the end counts. Names of new
# functions would come from a process of their own, whose pipes look like leaks.
options=(-detect_leaks=0 -print_funcs=0 -max_len=4096 -len_control=0 -timeout=30 -rss_limit_mb=3072)
failed=
# A check that finds nothing is worth something only where it would have found something: a leak sanitizer that may not
# stop its own threads (in some containers) keeps quiet.
for leak in memory descriptor; do
  log=$scratch/finds/planted-$leak.$$.log
  if YCLOUD_FUZZ_TARGET=planted-$leak "$scratch/release/ycloud-fuzz" "${options[@]}" -runs=3 \
    -artifact_prefix="$scratch/finds/planted-$$-" >"$log" 2>&1 || ! grep -aqE 'detected memory leaks|descriptors leak' "$log"; then
    echo "a planted leak of a $leak is not found: see $log" >&2
    exit 1
  fi
  rm -f "$log" "$scratch/finds/planted-$$-"*
done
for target in $targets; do
  mkdir -p "$scratch/corpus/$target"
  log=$scratch/finds/$target.log
  before=$(find "$scratch/corpus/$target" -type f | wc -l)
  YCLOUD_FUZZ_TARGET=$target "$scratch/release/ycloud-fuzz" "${options[@]}" -max_total_time="$seconds" \
    -print_final_stats=1 -artifact_prefix="$scratch/finds/$target-" \
    "$scratch/corpus/$target" "Tests/Fuzz/corpus/$target" >"$log" 2>&1
  status=$?
  after=$(find "$scratch/corpus/$target" -type f | wc -l)
  runs=$(sed -n 's/^stat::number_of_executed_units: //p' "$log")
  rate=$(sed -n 's/^stat::average_exec_per_sec: *//p' "$log")
  coverage=$(grep -ao 'cov: [0-9]*' "$log" | tail -n 1)
  printf '%-10s %8s runs %6s/s  %-12s %4d new inputs  %s\n' "$target" "${runs:-?}" "${rate:-?}" "$coverage" \
    $((after - before)) "$([ $status -eq 0 ] && echo ok || echo "FOUND: see $log")"
  if [ $status -ne 0 ]; then
    failed=1
    grep -aE 'FAILURE|ERROR: |SUMMARY|Fatal error|Test unit written' "$log" | head -n 6
  fi
done
[ -z "$failed" ]
