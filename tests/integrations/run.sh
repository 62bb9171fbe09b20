#!/usr/bin/env bash
# Models, agent frameworks and MCP clients, with official packages, against a real server and the provider on loopback.
# Needs root, the folders of `scripts/setup.sh integrations`, and a data dir with the base template.
#
#   SOULBOX_BINARY, SOULBOX_DATA_DIR, SOULBOX_FAKE_PROVIDER   which programs, on which data
#   tests/integrations/run.sh [PART...]                       only these: rust python typescript mcp
#   INTERPRETER_TEMPLATE                                      which template [default: code-interpreter-slim, built here]
#
# Everything that it starts is ended and given back, also when it fails.
set -euo pipefail
cd "$(dirname "$(realpath "$0")")/../.."
. scripts/server.sh
suite=integrations
. scripts/parts.sh

SOULBOX_BINARY=$(realpath "${SOULBOX_BINARY:-target/ci/soulbox}")
SOULBOX_FAKE_PROVIDER=$(realpath "${SOULBOX_FAKE_PROVIDER:-target/ci/soulbox-fake-provider}")
data=$(realpath -m "${SOULBOX_DATA_DIR:-target/test-data}")
export SOULBOX_BINARY SOULBOX_FAKE_PROVIDER
export INTERPRETER_TEMPLATE=${INTERPRETER_TEMPLATE:-code-interpreter-slim}

finish() {
    local status=$?
    trap - EXIT
    parts_end
    server_stop || status=1
    exit "$status"
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# An ES module finds its packages beside itself, so it runs from the folder that has them.
node_mcp() {
    cp tests/integrations/mcp/client.test.mjs .cache/node-mcp/
    node --test --test-concurrency=1 --test-reporter=spec .cache/node-mcp/client.test.mjs
}

parts=("$@")
for named in "${parts[@]}"; do
    case $named in
    rust | python | typescript | mcp) ;;
    *) echo "error: there is no part $named, only rust, python, typescript and mcp" >&2; exit 2 ;;
    esac
done
mkdir -p "$data/integrations"
if [ "$INTERPRETER_TEMPLATE" = code-interpreter-slim ]; then
    "$SOULBOX_BINARY" template build templates/code-interpreter-slim --data-dir "$data"
fi
server_start "$SOULBOX_BINARY" "$data" "$data/integrations/server.log"
exports=$(server_env)
eval "$exports"
export E2B_API_KEY E2B_API_URL E2B_SANDBOX_URL SOULBOX_TEMPLATE=$INTERPRETER_TEMPLATE
# The two longest run beside the others. Each counts the sandboxes of its key, so each has a team of its own.
if wanted python; then
    key=$(server_key python)
    beside "soulbox-agents, Python" env "E2B_API_KEY=$key" .cache/venv-agents/bin/pytest -q tests/integrations/python
fi
if wanted typescript; then
    key=$(server_key typescript)
    beside "@soulbox/agents, TypeScript" env "E2B_API_KEY=$key" tests/integrations/typescript/run.sh
fi
if wanted rust; then part "soulbox agent" .cache/venv-mcp/bin/pytest -q tests/integrations/agent; fi
if wanted mcp; then
    part "soulbox mcp, Python" .cache/venv-mcp/bin/pytest -q tests/integrations/mcp
    part "soulbox mcp, TypeScript" node_mcp
fi
parts_join
server_stop || failed+=("the server did not give everything back")

parts_report "$data"
