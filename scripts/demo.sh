#!/usr/bin/env bash
# Starts a server, runs both quickstarts against it with the official packages, ends it. Called by `make demo`.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/server.sh

binary=${SOULBOX_BINARY:-target/release/soulbox}
data=${SOULBOX_DATA_DIR:-./.data}
log=$data/demo.log

trap 'server_stop' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
server_start "$binary" "$data" "$log"
eval "$(server_env)"
export E2B_API_KEY E2B_API_URL E2B_SANDBOX_URL

echo "--- Python, e2b 2.63.0"
.cache/venv-latest/bin/python examples/quickstart.py
echo "--- JavaScript, e2b 2.51.0"
# An ES module finds its packages beside itself, so it runs from the folder that has them.
cp examples/quickstart.mjs .cache/node-latest/
node .cache/node-latest/quickstart.mjs

trap - EXIT
server_stop
echo "--- the server and its sandboxes are gone; README.md says how to start one that stays"
