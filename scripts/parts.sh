# Runs of several parts, each wanted or not, of which one report names all that failed. Sourced, with the names of the parts that are
# wanted in `parts` (none: all of them).
failed=()

# part NAME COMMAND...: goes on after a failure.
part() {
    local name=$1
    shift
    printf '\n--- %s: %s\n' "$suite" "$name"
    "$@" || failed+=("$name")
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
