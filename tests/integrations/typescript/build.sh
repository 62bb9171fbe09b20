#!/usr/bin/env bash
# @soulbox/agents built, checked, packed, and installed beside the official packages in the folder of `scripts/setup.sh integrations`.
set -euo pipefail
cd "$(dirname "$0")/../../.."
packages=$PWD/.cache/node-agents
node=$packages/node_modules/node22/bin/node
[ -x "$node" ] || { echo "error: there is no $node" >&2; echo "hint: run scripts/setup.sh integrations" >&2; exit 2; }

# An ES module finds its packages in the folders above it, so the sources are copied to where they are.
copy=$packages/soulbox-agents
installed=$packages/node_modules/@soulbox/agents
rm -rf "$copy" "$installed" "$packages"/soulbox-agents-*.tgz
mkdir -p "$copy" "$installed"
cp -r integrations/typescript/. "$copy/"
cd "$copy"
"$node" "$packages/node_modules/typescript/bin/tsc" --project tsconfig.json
"$packages/node_modules/.bin/biome" ci --colors=off .
npm pack --silent --pack-destination "$packages" > /dev/null
tar -xzf "$packages"/soulbox-agents-*.tgz --strip-components=1 -C "$installed"
