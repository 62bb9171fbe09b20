#!/usr/bin/env bash
# The table of figures: a release server with slots made ahead, measured by bench/figures, one file a subject. Flags go to it
# (--quick, --json PATH), and so do subjects: `bench/run.sh lifecycle envd`. Results of each run are kept in bench/results.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/server.sh

binary=${SOULBOX_BINARY:-target/release/soulbox}
data=${SOULBOX_DATA_DIR:-./.data}
scripts/setup.sh bench
# API, control and records alone, for what needs more sandboxes than a machine holds.
if [ -z "${BENCH_RECORDS:-}" ]; then
    cargo build --release --package soulbox-bench
    BENCH_RECORDS=target/release/soulbox-bench
fi
export BENCH_RECORDS

trap 'server_stop' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
# As many slots as the largest burst, so that it meets the path that is measured.
export BENCH_WARM=64
server_start "$binary" "$data" "$data/bench.log" --warm "$BENCH_WARM" --store "$data/store"
export BENCH_AGENT=$server_pid
BENCH_BINARY=$(realpath "$binary")
export BENCH_BINARY
exports=$(server_env)
eval "$exports"
export E2B_API_KEY E2B_API_URL E2B_SANDBOX_URL
layer=$("$binary" template list --local --data-dir "$data" --json | jq -er '.[] | select(.name == "base") | .layers[0]')
BENCH_ROOT=$(realpath "$data/pool/layers/$layer")
export BENCH_ROOT

echo "$(date --iso-8601=seconds), $(git rev-parse --short HEAD), $(uname -r), $(nproc) cores"
mkdir -p bench/results
.cache/venv-latest/bin/python bench/figures --json "bench/results/$(date +%Y%m%d-%H%M%S).json" "$@"
trap - EXIT
server_stop
