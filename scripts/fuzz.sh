#!/usr/bin/env bash
# Runs each fuzz target for FUZZ_SECONDS (60), or those that are named. Stored inputs are the start; what is found new is
# kept in target/fuzz-corpus, what fails in target/fuzz-failures. A failure ends the run.
#
# Stable Rust has all that libFuzzer needs but the address sanitizer, which safe code can do without.
set -euo pipefail
cd "$(dirname "$0")/.."

host=$(rustc -vV | sed -n 's/^host: //p')
counters=(-Cpasses=sancov-module -Ccodegen-units=1
    -Cllvm-args=-sanitizer-coverage-level=4 -Cllvm-args=-sanitizer-coverage-inline-8bit-counters
    -Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares)
# With --target, they reach no build script.
RUSTFLAGS="${counters[*]}" cargo build --release --manifest-path fuzz/Cargo.toml --target "$host" --target-dir target/fuzz

targets=("$@")
if [ ${#targets[@]} -eq 0 ]; then
    for file in fuzz/fuzz_targets/*.rs; do targets+=("$(basename "$file" .rs)"); done
fi
for target in "${targets[@]}"; do
    mkdir -p "target/fuzz-corpus/$target" "target/fuzz-failures/$target"
    echo "==> $target"
    "target/fuzz/$host/release/$target" "target/fuzz-corpus/$target" "fuzz/corpus/$target" \
        -artifact_prefix="target/fuzz-failures/$target/" -max_total_time="${FUZZ_SECONDS:-60}" \
        -timeout=15 -rss_limit_mb=2048 -max_len=65536 -print_final_stats=1 -verbosity=0
done
