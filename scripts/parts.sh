# Runs of several parts, each wanted or not, of which one report names all that failed. Sourced, with the names of the parts that are
# wanted in `parts` (none: all of them).
failed=()
beside_names=() beside_groups=() beside_logs=()

# part NAME COMMAND...: goes on after a failure.
part() {
    local name=$1
    shift
    printf '\n--- %s: %s\n' "$suite" "$name"
    "$@" || failed+=("$name")
}

# beside NAME COMMAND...: as part, but goes on at once; `parts_join` says how it went.
beside() {
    local name=$1 log
    shift
    log=$(mktemp)
    # A process group of its own, by which it can be ended with all that it started.
    set -m
    "$@" > "$log" 2>&1 < /dev/null &
    set +m
    beside_names+=("$name") beside_groups+=($!) beside_logs+=("$log")
}

# Waits for what runs beside, and prints what each said.
parts_join() {
    local at
    for at in "${!beside_groups[@]}"; do
        wait "${beside_groups[at]}" || failed+=("${beside_names[at]}")
        printf '\n--- %s: %s\n' "$suite" "${beside_names[at]}"
        cat "${beside_logs[at]}"
        rm "${beside_logs[at]}"
    done
    beside_names=() beside_groups=() beside_logs=()
}

# Ends what still runs beside, for a script that ends before its time.
parts_end() {
    local at
    for at in "${!beside_groups[@]}"; do
        kill -TERM -- "-${beside_groups[at]}" 2> /dev/null || true
        cat "${beside_logs[at]}"
        rm -f "${beside_logs[at]}"
    done
}

wanted() { [ ${#parts[@]} = 0 ] || [[ " ${parts[*]} " == *" $1 "* ]]; }

# Says how it went; fails when something did, or when something is still mounted in the folder.
parts_report() { # parts_report FOLDER
    if grep " $1/" /proc/mounts; then failed+=("something is still mounted in $1"); fi
    if [ ${#failed[@]} -gt 0 ]; then
        printf '\n%s failed:\n' "$suite" >&2
        printf '  %s\n' "${failed[@]}" >&2
        return 1
    fi
    printf '\n%s: all parts passed\n' "$suite"
}
