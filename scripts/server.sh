# Functions to run a SoulBox server for the time of a script. Source it, then:
#
#   server_start BINARY DATA_DIR LOG [FLAG...]  starts `serve`, waits until it answers; sets server_address.
#                                               SERVER_LISTEN chooses the address, else it is a free port of loopback
#   server_env                                  prints the exports for that server
#   server_key NAME                             prints the key of a new team, for what counts sandboxes beside others
#   server_stop                                 ends it and every sandbox, and gives all of the host back; idempotent
#
# The caller puts server_stop into its EXIT trap.

server_pid=
server_binary=
server_data=
server_address=

free_port() {
    # The kernel's choice; between this and the bind somebody else could take it, which serve would report.
    python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'
}

server_start() {
    server_binary=$1 server_data=$2
    # What `scripts/setup.sh criu` unpacks; without it the server looks for one itself.
    if [ -z "${SOULBOX_CRIU:-}" ] && [ -d .cache/criu ]; then
        export SOULBOX_CRIU=$PWD/.cache/criu
    fi
    local log=$3
    shift 3
    mkdir -p "$server_data" "$(dirname "$log")"
    server_address=${SERVER_LISTEN:-127.0.0.1:$(free_port)}
    "$server_binary" serve --data-dir "$server_data" --listen "$server_address" "$@" > "$log" 2>&1 < /dev/null &
    server_pid=$!
    local scheme=http
    case " $* " in *" --tls-cert "*) scheme=https ;; esac
    local attempt
    for ((attempt = 0; attempt < 300; attempt++)); do
        if curl --silent --insecure --fail --noproxy '*' --max-time 2 "$scheme://$server_address/health" > /dev/null; then
            return
        fi
        if ! kill -0 "$server_pid" 2> /dev/null; then
            echo "error: the server ended before it answered; its log:" >&2
            tail -n 40 "$log" >&2
            return 1
        fi
        sleep 0.2
    done
    echo "error: the server did not answer within 60 s; its log:" >&2
    tail -n 40 "$log" >&2
    return 1
}

server_env() {
    "$server_binary" env --data-dir "$server_data" --listen "$server_address"
}

server_key() {
    "$server_binary" admin team create "$1-$$" --data-dir "$server_data" > /dev/null &&
        "$server_binary" admin key create "$1-$$" --name tests --data-dir "$server_data"
}

server_stop() {
    [ "$server_binary" ] || return 0
    if [ "$server_pid" ] && kill -TERM "$server_pid" 2> /dev/null; then
        local attempt
        for ((attempt = 0; attempt < 150; attempt++)); do
            kill -0 "$server_pid" 2> /dev/null || break
            sleep 0.1
        done
        kill -KILL "$server_pid" 2> /dev/null || true
        wait "$server_pid" 2> /dev/null || true
    fi
    # A graceful stop leaves sandboxes running; a script's server leaves nothing.
    local status=0
    "$server_binary" clean --data-dir "$server_data" > /dev/null || status=$?
    server_pid='' server_binary=''
    return "$status"
}
