#!/usr/bin/env bash
# Creates and kills for SOAK_SECONDS (60), then looks for what was left over: processes, network interfaces, cgroups,
# uppers, descriptors and memory of the server. Fails when anything grew.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/server.sh

binary=${SOULBOX_BINARY:-target/release/soulbox}
data=${SOULBOX_DATA_DIR:-./.data}

trap 'server_stop' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
server_start "$binary" "$data" "$data/soak.log"
exports=$(server_env)
eval "$exports"
export E2B_API_KEY E2B_API_URL E2B_SANDBOX_URL

count() { # what a sandbox may leave behind, one number each
    printf '%s %s %s %s %s\n' \
        "$(pgrep -c -f "^$(realpath "$data")/bin/" || true)" \
        "$(ip -o link | wc -l)" \
        "$(find /sys/fs/cgroup -type d -path '*soulbox*' 2> /dev/null | wc -l)" \
        "$(find "$data/pool/uppers" -mindepth 1 -maxdepth 1 | wc -l)" \
        "$(find "/proc/$server_pid/fd" -mindepth 1 | wc -l)"
}
memory() { awk '/^VmRSS/ {print $2}' "/proc/$server_pid/status"; }

SOAK_SECONDS=10 .cache/venv-latest/bin/python bench/soak.py # caches and pools reach their size
sleep 3
before=$(count) memory_before=$(memory)
SOAK_SECONDS=${SOAK_SECONDS:-60} .cache/venv-latest/bin/python bench/soak.py
sleep 5
after=$(count) memory_after=$(memory)
echo "processes, interfaces, cgroups, uppers, descriptors: $before -> $after"
echo "memory of the agent: $memory_before -> $memory_after KiB"
trap - EXIT
server_stop
[ "$before" = "$after" ] || { echo "error: something was left over" >&2; exit 1; }
[ "$memory_after" -lt $((memory_before + 8192)) ] || { echo "error: the agent's memory grew" >&2; exit 1; }
