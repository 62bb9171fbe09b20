#!/usr/bin/env bash
# The official packages, unmodified, against a real server: by E2B_API_URL and E2B_SANDBOX_URL, and by E2B_DOMAIN
# over TLS. Needs root, the folders of `scripts/setup.sh sdks clients`, and a data dir with the base template.
#
#   SOULBOX_BINARY, SOULBOX_DATA_DIR   which server, on which data
#   tests/compat/run.sh [--generation old|latest] [PART...]
#                                      only these: quickstart tls node python runtimes browser interpreter
#   INTERPRETER_TEMPLATE               for interpreter and browser, which template [default: code-interpreter-slim, built here]
#
# The quickstarts run with both generations of the packages always; the suites with the latest, or with the older one
# when that is asked for. The runtimes and the browser have the latest only.
#
# Everything that it starts is ended and given back, also when it fails.
set -euo pipefail
self=$(realpath "$0")
cd "$(dirname "$self")/../.."
. scripts/server.sh
suite=compat
. scripts/parts.sh

binary=$(realpath "${SOULBOX_BINARY:-target/ci/soulbox}")
data=$(realpath -m "${SOULBOX_DATA_DIR:-target/test-data}")
work=$data/compat
domain=sandboxes.test
# An address of loopback that is nobody else's, so that the real port 443 can be used without taking anybody's.
tls_address=127.77.0.1
resolver_pid=

generation=latest
if [ "${1-}" = --generation ]; then
    generation=${2-}
    shift 2 || { echo 'error: --generation needs old or latest' >&2; exit 2; }
fi
case $generation in
latest)
    venv=.cache/venv-latest node=.cache/node-latest
    interpreter_venv=.cache/venv-interpreter interpreter_node=.cache/node-interpreter
    ;;
old)
    venv=.cache/venv-245 node=.cache/node-245
    interpreter_venv=.cache/venv-interpreter-291 interpreter_node=.cache/node-interpreter-271
    ;;
*) echo "error: there is no generation $generation, only old and latest" >&2; exit 2 ;;
esac

finish() {
    local status=$?
    trap - EXIT
    parts_end
    [ -z "$resolver_pid" ] || kill "$resolver_pid" 2> /dev/null || true
    server_stop || status=1
    exit "$status"
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# An ES module finds its packages beside itself, so it runs from the folder that has them.
node_script() { # node_script PACKAGES SCRIPT [NODE_FLAG...]
    local packages=$1 script=$2
    shift 2
    cp "$script" "$packages/"
    node "$@" "$packages/$(basename "$script")"
}

quickstarts() {
    part "quickstart.py, e2b 2.63.0, $1" .cache/venv-latest/bin/python examples/quickstart.py
    part "quickstart.py, e2b 2.45.1, $1" .cache/venv-245/bin/python examples/quickstart.py
    part "quickstart.mjs, e2b 2.51.0, $1" node_script .cache/node-latest examples/quickstart.mjs
    part "quickstart.mjs, e2b 2.45.0, $1" node_script .cache/node-245 examples/quickstart.mjs
}

# ES modules find their packages beside themselves. Chromium and the runtimes come with `scripts/setup.sh clients`.
clients() { # clients NAME FOLDER
    cp examples/quickstart.mjs tests/compat/{runtimes,browser}/*.mjs .cache/clients/
    local tests=("tests/compat/$2"/*.test.mjs)
    part "$1" in_clients node --test --test-concurrency=1 --test-reporter=spec "${tests[@]##*/}"
}

in_clients() { (cd .cache/clients && "$@"); }

by_url() {
    server_start "$binary" "$data" "$work/server.log"
    local exports
    exports=$(server_env)
    eval "$exports"
    export E2B_API_KEY E2B_API_URL E2B_SANDBOX_URL
    if wanted quickstart; then quickstarts "by URL"; fi
    if wanted python; then
        # The longest runs beside the others. Each counts the sandboxes of its key, so the others have a team of their own.
        # A skipped test says what the package lacks.
        beside "python suite, $generation" "$venv/bin/pytest" -q -rs tests/compat/python
        E2B_API_KEY=$(server_key others)
    fi
    if wanted node; then
        part "node suite, $generation" node_script "$node" tests/compat/node/sandbox.test.mjs --test --test-reporter=spec
        part "node builder, $generation" node_script "$node" tests/compat/node/builds.test.mjs --test --test-reporter=spec
    fi
    if wanted runtimes; then clients "Node 20 and 22, Bun, Deno" runtimes; fi
    if wanted browser; then clients "a browser" browser; fi
    if wanted interpreter; then
        part "code interpreter, Python, $generation" "$interpreter_venv/bin/pytest" -q -rs tests/compat/interpreter
        part "code interpreter, JavaScript, $generation" node_script "$interpreter_node" \
            tests/compat/interpreter/sandbox.test.mjs --test --test-reporter=spec
    fi
    parts_join
    server_stop || failed+=("the server did not give everything back")
}

certificates() {
    (
        cd "$work"
        openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj "/CN=SoulBox test authority" \
            -addext "basicConstraints=critical,CA:TRUE" -keyout ca.key -out ca.pem
        openssl req -newkey rsa:2048 -nodes -subj "/CN=$domain" -keyout leaf.key -out leaf.csr
        printf 'basicConstraints=CA:FALSE\nsubjectAltName=DNS:%s,DNS:*.%s,IP:%s\n' "$domain" "$domain" "$tls_address" \
            > leaf.ext
        openssl x509 -req -in leaf.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile leaf.ext -out leaf.pem
    ) > "$work/openssl.log" 2>&1 || { cat "$work/openssl.log" >&2; return 1; }
}

# Runs this script's `inside` in a mount namespace of its own, where the test resolver is the machine's.
with_test_resolver() {
    printf 'nameserver %s\noptions timeout:2 attempts:2\n' "$tls_address" > "$work/resolv.conf"
    printf 'hosts: files dns\n' > "$work/nsswitch.conf"
    # Mounted over the files that the names lead to: /etc/resolv.conf may be a link.
    unshare --mount --propagation private -- bash -euc '
        mount --bind "$0/resolv.conf" "$(realpath /etc/resolv.conf)"
        mount --bind "$0/nsswitch.conf" "$(realpath /etc/nsswitch.conf)"
        exec "$@"
    ' "$work" "$@"
}

resolver_ready() {
    local attempt
    for ((attempt = 0; attempt < 50; attempt++)); do
        if grep -q ready "$work/resolver.log"; then return; fi
        sleep 0.1
    done
    echo "error: the test resolver did not start" >&2
    cat "$work/resolver.log" >&2
    return 1
}

# Called where bash does not heed `set -e`, so each step says so itself.
by_domain() {
    certificates || return 1
    python3 tests/compat/resolver.py "$tls_address" "$domain" "$tls_address" > "$work/resolver.log" 2>&1 &
    resolver_pid=$!
    SERVER_LISTEN=$tls_address:443 server_start "$binary" "$data" "$work/server-tls.log" \
        --domain "$domain" --tls-cert "$work/leaf.pem" --tls-key "$work/leaf.key" || return 1
    resolver_ready || return 1
    E2B_API_KEY=$(jq -er .api_key "$data/credentials.json") || return 1
    export E2B_API_KEY E2B_DOMAIN=$domain
    unset E2B_API_URL E2B_SANDBOX_URL
    # Each client has its own way to be told of an authority.
    export SSL_CERT_FILE=$work/ca.pem NODE_EXTRA_CA_CERTS=$work/ca.pem
    if ! with_test_resolver "$self" --generation "$generation" inside; then failed+=("by E2B_DOMAIN over TLS"); fi
    server_stop || failed+=("the server with TLS did not give everything back")
    kill "$resolver_pid"
    resolver_pid=
}

if [ "${1-}" = inside ]; then
    trap - EXIT
    quickstarts "by E2B_DOMAIN over TLS"
    part "HTTP/2 over TLS, $generation" "$venv/bin/pytest" -q tests/compat/tls
    [ ${#failed[@]} = 0 ] || { printf 'failed: %s\n' "${failed[@]}" >&2; exit 1; }
    exit 0
fi

parts=("$@")
if [ ${#parts[@]} = 0 ] && [ "$generation" = old ]; then parts=(quickstart tls node python interpreter); fi
for named in "${parts[@]}"; do
    case $named in
    quickstart | tls | node | python | interpreter) ;;
    runtimes | browser) [ "$generation" = latest ] || { echo "error: $named have the latest packages only" >&2; exit 2; } ;;
    *) echo "error: there is no part $named" >&2; exit 2 ;;
    esac
done
mkdir -p "$work"
export INTERPRETER_TEMPLATE=${INTERPRETER_TEMPLATE:-code-interpreter-slim}
if { wanted interpreter || wanted browser; } && [ "$INTERPRETER_TEMPLATE" = code-interpreter-slim ]; then
    "$binary" template build templates/code-interpreter-slim --data-dir "$data"
fi
if wanted tls; then (trap finish EXIT; by_domain && [ ${#failed[@]} = 0 ]) || failed+=("by E2B_DOMAIN"); fi
if wanted quickstart || wanted node || wanted python || wanted runtimes || wanted browser || wanted interpreter; then by_url; fi

parts_report "$data"
