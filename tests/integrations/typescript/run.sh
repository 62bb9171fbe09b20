#!/usr/bin/env bash
# @soulbox/agents as its users have it, against a server.
#
#   E2B_API_KEY, E2B_API_URL, E2B_SANDBOX_URL   which server
#   INTERPRETER_TEMPLATE                        its template of the code interpreter [default: the package's own]
#   SOULBOX_FAKE_PROVIDER                       the loopback provider [default: target/ci/soulbox-fake-provider]
#   tests/integrations/typescript/run.sh [NAME...]   only these NAME.test.mjs
#
# Needs the folder of `scripts/setup.sh integrations`.
set -euo pipefail
cd "$(dirname "$0")/../../.."
repository=$PWD
packages=$repository/.cache/node-agents
SOULBOX_FAKE_PROVIDER=$(realpath -m "${SOULBOX_FAKE_PROVIDER:-target/ci/soulbox-fake-provider}")
export SOULBOX_FAKE_PROVIDER SOULBOX_REPOSITORY=$repository
# The programs of the documentation name their template by this.
export SOULBOX_TEMPLATE=${INTERPRETER_TEMPLATE:-}

tests/integrations/typescript/build.sh
# Beside the packages, so that nothing that is built gets into the sources.
rm -rf "$packages"/{tests,examples}
cp -r tests/integrations/typescript "$packages/tests"
cp -r examples "$packages/examples"
cd "$packages/tests"
tests=()
for name in "$@"; do tests+=("$name.test.mjs"); done
[ ${#tests[@]} -gt 0 ] || tests=(*.test.mjs)
PATH=$packages/node_modules/node22/bin:$PATH NEXT_TELEMETRY_DISABLED=1 \
    node --test --test-concurrency=2 --test-timeout=240000 --test-reporter=spec "${tests[@]}"
