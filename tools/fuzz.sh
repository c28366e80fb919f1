#!/usr/bin/env bash
# Fuzzes every reader of outside bytes, one after the other; see fuzz/README.md.
#
#   tools/fuzz.sh                 a release: each reader until 1,000,000 inputs or 10 minutes
#   tools/fuzz.sh 20              20 seconds each
#   tools/fuzz.sh 600 zip note    10 minutes each for these readers
#
# The first failure of a reader ends its run; the script goes on and exits with 1 at the end.
set -euo pipefail
cd "$(dirname "$0")/.."

seconds=${1:-600}
[ $# -gt 0 ] && shift
sanitizer=${GRADLEDGER_SANITIZER:-address}
corpus=$PWD/fuzz/corpus

# The good inputs: the golden data, and small ledgers made for it.
GRADLEDGER_FUZZ_CORPUS=$corpus cargo test --quiet --test hostile -- every_reader_takes_its_good_inputs >/dev/null

# The versions of the program's own build.
[ -e fuzz/Cargo.lock ] || cp Cargo.lock fuzz/Cargo.lock
# libFuzzer needs flags that stable rustc takes only so.
RUSTC_BOOTSTRAP=1 cargo fuzz build --sanitizer "$sanitizer" reader
target=$(rustc -vV | sed -n 's/^host: //p')
reader=${CARGO_TARGET_DIR:-fuzz/target}/$target/release/reader

readers=("$@")
[ $# -gt 0 ] || mapfile -t readers < <(ls "$corpus")
failed=()
for name in "${readers[@]}"; do
  mkdir -p "fuzz/artifacts/$name"
  # Memory: 512 MiB in all (the sanitizer's own included), 64 MiB at once. Time: 10 s an input, on
  # inputs of at most 64 KiB.
  if GRADLEDGER_READER=$name ASAN_OPTIONS=quarantine_size_mb=16:detect_leaks=0 \
    nice "$reader" "$corpus/$name" -artifact_prefix="fuzz/artifacts/$name/" \
    -max_total_time="$seconds" -runs=1000000 -max_len=65536 -timeout=10 \
    -rss_limit_mb=512 -malloc_limit_mb=64 -print_final_stats=1 >"fuzz/artifacts/$name.log" 2>&1; then
    state=passed
  else
    state=FAILED
    failed+=("$name")
  fi
  stat() { sed -n "s/^stat::$1: *//p" "fuzz/artifacts/$name.log"; }
  printf '%-13s %s: %s inputs, %s a second, %s MiB\n' "$name" "$state" \
    "$(stat number_of_executed_units)" "$(stat average_exec_per_sec)" "$(stat peak_rss_mb)"
done
if [ ${#failed[@]} -gt 0 ]; then
  echo "failed: ${failed[*]}; the inputs lie in fuzz/artifacts/" >&2
  exit 1
fi
