#!/usr/bin/env bash
# @soulbox/agents as its users have it: built, checked, packed, and installed beside the official packages, against a server.
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
node=$packages/node_modules/node22/bin/node
[ -x "$node" ] || { echo "error: there is no $node" >&2; echo "hint: run scripts/setup.sh integrations" >&2; exit 2; }
SOULBOX_FAKE_PROVIDER=$(realpath -m "${SOULBOX_FAKE_PROVIDER:-target/ci/soulbox-fake-provider}")
export SOULBOX_FAKE_PROVIDER SOULBOX_REPOSITORY=$repository
# The programs of the documentation name their template by this.
export SOULBOX_TEMPLATE=${INTERPRETER_TEMPLATE:-}

# An ES module finds its packages in the folders above it, so everything is copied to where they are, and nothing of it is in the sources.
copy=$packages/soulbox-agents
rm -rf "$copy" "$packages"/{tests,examples,node_modules/@soulbox}
mkdir -p "$copy" "$packages/node_modules/@soulbox/agents"
cp -r integrations/typescript/. "$copy/"
cp -r tests/integrations/typescript "$packages/tests"
cp -r examples "$packages/examples"
cd "$copy"
"$node" "$packages/node_modules/typescript/bin/tsc" --project tsconfig.json
"$packages/node_modules/.bin/biome" ci --colors=off .
npm pack --silent --pack-destination "$packages" > /dev/null
tar -xzf "$packages"/soulbox-agents-*.tgz --strip-components=1 -C "$packages/node_modules/@soulbox/agents"

cd "$packages/tests"
tests=()
for name in "$@"; do tests+=("$name.test.mjs"); done
[ ${#tests[@]} -gt 0 ] || tests=(*.test.mjs)
PATH=$packages/node_modules/node22/bin:$PATH NEXT_TELEMETRY_DISABLED=1 \
    node --test --test-concurrency=2 --test-timeout=240000 --test-reporter=spec "${tests[@]}"
