#!/usr/bin/env bash
# Makes a Debian 12 machine with Rust, Node, Python, make and apt able to build, run and test SoulBox.
#
#   scripts/setup.sh packages   Debian packages, only those that are missing
#   scripts/setup.sh sdks       the official clients that examples and tests use, in .cache
#   scripts/setup.sh clients    Chromium, the code interpreter's packages, and the runtimes and tools of tests/compat/{runtimes,browser}, in .cache
#   scripts/setup.sh integrations
#                               the official clients of model providers and agent frameworks, for tests/integrations, in .cache
#   scripts/setup.sh criu       CRIU, with which a test dumps and restores a sandbox, in .cache
#   scripts/setup.sh vm         qemu and a machine for it, in .cache
#   scripts/setup.sh bench      runc and buildah, the peers of the figures, wrk, their load, and perf, which tells where time goes
#
# Each part does nothing when its result is already there. Packages come by apt, pip and npm as this machine
# has them set up.
set -euo pipefail
cd "$(dirname "$0")/.."

say() { printf '==> %s\n' "$*" >&2; }
fail() { printf 'error: %s\nhint: %s\n' "$1" "$2" >&2; exit 1; }

need_root() {
    [ "$(id -u)" = 0 ] || fail "sandboxes need root: namespaces, cgroups and mounts" "run make as root"
}

packages() {
    local wanted=(
        btrfs-progs mmdebstrap nftables iproute2    # the server's own tools
        gcc libc6-dev make pkg-config               # the linker of Rust, static libc of the guests
        ca-certificates curl git jq openssl procps util-linux
    )
    # Its programs: tests make clusters of their own, and touch none that the package may start.
    wanted+=(postgresql)
    # A Python from elsewhere brings its own venv; Debian's has it in a package.
    local python
    python=$(find_python) && "$python" -c 'import ensurepip' 2> /dev/null || wanted+=(python3 python3-venv)
    install_missing "${wanted[@]}"
    command -v cargo > /dev/null || fail "there is no cargo" "install Rust 1.95 or newer"
    command -v npm > /dev/null || fail "there is no npm" "install Node 20.18 or newer"
}

bench() { install_missing runc buildah wrk linux-perf; }

install_missing() {
    need_root
    local missing=() package
    for package in "$@"; do
        dpkg-query -W -f '${db:Status-Status}\n' "$package" 2> /dev/null | grep -qx installed || missing+=("$package")
    done
    [ ${#missing[@]} -gt 0 ] || return 0
    say "installing ${missing[*]}"
    command -v apt-get > /dev/null || fail "no apt-get here, and missing: ${missing[*]}" "install them by hand"
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends "${missing[@]}" > /dev/null
}
find_python() {
    local candidate
    for candidate in python3.11 python3; do
        # A name alone proves nothing: version switchers leave shims for versions that are not chosen.
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2> /dev/null; then
            echo "$candidate"
            return
        fi
    done
    return 1
}

# venv FOLDER REQUIREMENT...: exactly these, made anew when the list changes.
venv() {
    local folder=$1
    shift
    [ "$(cat "$folder/.made-of" 2> /dev/null)" = "$*" ] && return
    say "installing $* into $folder"
    rm -rf "$folder"
    local python
    python=$(find_python) || fail "there is no Python 3.10 or newer" "apt-get install python3 python3-venv"
    "$python" -m venv "$folder"
    "$folder/bin/pip" install --quiet --disable-pip-version-check "$@"
    echo "$*" > "$folder/.made-of"
}

# node FOLDER PACKAGE...
node_packages() {
    local folder=$1
    shift
    [ "$(cat "$folder/.made-of" 2> /dev/null)" = "$*" ] && return
    say "installing $* into $folder"
    rm -rf "$folder"
    mkdir -p "$folder"
    echo '{ "private": true }' > "$folder/package.json"
    npm install --silent --no-audit --no-fund --prefix "$folder" "$@" > /dev/null
    echo "$*" > "$folder/.made-of"
}

# node_locked SOURCE FOLDER: as the lock of SOURCE says, and made anew when it changes. No script of a package has to run.
node_locked() {
    local source=$1 folder=$2
    cmp -s "$source/package-lock.json" "$folder/.made-of" && return
    [ "$(uname -m)" = x86_64 ] || fail "the runtimes are locked for x86_64, this is $(uname -m)" "run the parts of the tests that need none"
    say "installing the packages of $source into $folder"
    rm -rf "$folder"
    mkdir -p "$folder"
    cp "$source"/package{,-lock}.json "$folder/"
    npm ci --silent --ignore-scripts --no-audit --no-fund --prefix "$folder" > /dev/null
    cp "$source/package-lock.json" "$folder/.made-of"
}

sdks() {
    mkdir -p .cache
    # What the tests need besides, the same for both generations: each runs the whole suite.
    local tests=(pytest==9.2.0 pytest-asyncio==1.5.0 pytest-timeout==2.4.0
        grpcio==1.85.3 grpcio-tools==1.85.1 grpcio-reflection==1.85.1 grpcio-health-checking==1.85.1
        websockets==17.4)
    venv .cache/venv-latest e2b==2.63.0 "${tests[@]}"
    venv .cache/venv-245 e2b==2.45.1 "${tests[@]}"
    node_packages .cache/node-latest e2b@2.51.0
    node_packages .cache/node-245 e2b@2.45.0
    node_packages .cache/node-cli @e2b/cli@2.19.0
    venv .cache/venv-fuzz schemathesis==4.32.5
}

clients() {
    install_missing chromium
    mkdir -p .cache
    venv .cache/venv-interpreter e2b-code-interpreter==2.11.5 e2b==2.63.0 pytest==9.2.0 pytest-asyncio==1.5.0 pytest-timeout==2.4.0
    venv .cache/venv-interpreter-291 e2b-code-interpreter==2.9.1 e2b==2.45.1 pytest==9.2.0 pytest-asyncio==1.5.0 pytest-timeout==2.4.0
    node_packages .cache/node-interpreter @e2b/code-interpreter@2.8.0 e2b@2.51.0
    node_packages .cache/node-interpreter-271 @e2b/code-interpreter@2.7.1 e2b@2.45.0
    node_locked tests/compat/runtimes .cache/clients
}

# The official clients of model providers, the agent frameworks, and what checks and builds the packages of integrations/.
integrations() {
    mkdir -p .cache
    venv .cache/venv-agents e2b-code-interpreter==2.11.5 e2b==2.63.0 \
        anthropic==2.14.0 mistralai==3.7.0 groq==1.7.0 together==3.1.1 fireworks-ai==1.2.30 ibm-watsonx-ai==1.8.1 \
        langchain==1.5.2 langgraph==1.2.24 langchain-openai==1.7.4 'autogen-agentchat==0.7.5' 'autogen-ext[openai]==0.7.5' \
        pytest==9.2.0 pytest-asyncio==1.5.0 pytest-timeout==2.4.0 ruff==0.17.6 build==1.6.1 hatchling==1.33.0
    # The type checker by npm: its Python package would fetch the same on first use.
    node_packages .cache/node-pyright pyright@1.1.414
    # A page is driven in Chromium.
    install_missing chromium
    node_locked tests/integrations/typescript .cache/node-agents
    # The official clients of MCP, and what drives `soulbox agent`; apart from the others, which have versions of their own.
    venv .cache/venv-mcp mcp==2.3.0 pytest==9.2.0 pytest-timeout==2.4.0
    node_packages .cache/node-mcp @modelcontextprotocol/sdk@1.32.2
}

# Debian 12's own CRIU fails on newer kernels, so a newer one is unpacked with the libraries that it needs, and BusyBox as a
# program to dump. Nothing of it is installed.
criu() {
    need_root
    local packages=criu,busybox-static folder=.cache/criu
    [ "$(cat "$folder/.made-of" 2> /dev/null)" = "$packages" ] && return
    say "unpacking $packages into $folder"
    mkdir -p .cache
    rm -rf "$folder"
    # The suite moves: its lists may be older than their own date of expiry.
    mmdebstrap --quiet --variant=extract --include="$packages" --aptopt='Acquire::Check-Valid-Until "false"' forky "$folder"
    echo "$packages" > "$folder/.made-of"
}

# A root with a kernel of forky, for tests/vm: newer than Debian 12's, and booted with cgroup v2 only.
vm() {
    need_root
    install_missing qemu-system-x86 mmdebstrap e2fsprogs
    local packages=linux-image-cloud-amd64,initramfs-tools,btrfs-progs,criu,nftables,iproute2,util-linux,mount,procps,kmod,udev folder=.cache/vm
    [ "$(cat "$folder/.made-of" 2> /dev/null)" = "$packages" ] && return
    say "making a machine in $folder"
    mkdir -p .cache
    rm -rf "$folder"
    mmdebstrap --quiet --variant=apt --include="$packages" --aptopt='Acquire::Check-Valid-Until "false"' forky "$folder"
    echo "$packages" > "$folder/.made-of"
}

[ $# -gt 0 ] || { sed -n '2,15s/^# \{0,1\}//p' "$0"; exit 2; }
for part in "$@"; do
    case $part in
    packages | sdks | clients | integrations | criu | vm | bench) "$part" ;;
    *) fail "there is no part $part" "packages, sdks, clients, integrations, criu, vm or bench" ;;
    esac
done
