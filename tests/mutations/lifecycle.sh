#!/usr/bin/env bash
# Breaks one rule of the life of a sandbox at a time and expects the simulation to notice.
#
# Each patch of tests/mutations/lifecycle is applied to a scratch copy of the last commit (a git worktree in target/mutants), in which the
# simulation runs MUTATION_SCHEDULES schedules (100,000) from seed 1 on, and after that, if it has noticed nothing, those that once found
# something, and then the unit tests of control. Arguments name patches; without any it is all of them.
set -euo pipefail
cd "$(dirname "$0")/../.."
root=$PWD
scratch=$root/target/mutants/lifecycle
patches=("$@")
if [ ${#patches[@]} = 0 ]; then
    for patch in tests/mutations/lifecycle/*.patch; do patches+=("$(basename "$patch" .patch)"); done
fi

remove() { git -C "$root" worktree remove --force "$scratch" 2> /dev/null || true; }
trap remove EXIT
remove
git worktree prune
git worktree add --quiet --detach "$scratch" HEAD
export CARGO_TARGET_DIR=$root/target/mutants/lifecycle-target
export SOULBOX_SIM_FIRST=1 SOULBOX_SIM_SCHEDULES=${MUTATION_SCHEDULES:-100000}

# The tests of a package, 3 when they do not compile.
tests() {
    by=$1
    shift
    (cd "$scratch" && cargo test --quiet --profile ci --no-run "$@") > "$scratch.log" 2>&1 || return 3
    (cd "$scratch" && timeout 600 cargo test --profile ci "$@" -- --nocapture) > "$scratch.log" 2>&1
}
notice() {
    tests '' --package soulbox-testkit --test simulation || return
    tests ' (tests/regressions.rs)' --package soulbox-testkit --test regressions || return
    tests ' (unit tests)' --package soulbox-control --lib
}

if ! notice; then
    tail -n 20 "$scratch.log" >&2
    echo "error: something fails without any mutation" >&2
    exit 1
fi
survived=0
for name in "${patches[@]}"; do
    git -C "$scratch" apply "$root/tests/mutations/lifecycle/$name.patch"
    outcome=0
    notice || outcome=$?
    rule=$(sed -nE 's/.*rule: "([^"]*)".*/\1/p; s/.*(never reached|docs.lifecycle.md lacks).*/\1/p; s/^test .*::(\w+) \.\.\. FAILED$/\1/p' \
        "$scratch.log" | head -n 1)
    case $outcome in
    0) verdict=SURVIVED survived=1 ;;
    3) verdict='DOES NOT COMPILE' survived=1 ;;
    124) verdict='noticed: it never ends' ;;
    *) verdict="noticed: ${rule:?the simulation failed without saying why}$by" ;;
    esac
    printf '%-36s %s\n' "$name" "$verdict"
    git -C "$scratch" checkout --quiet -- .
done
exit $survived
