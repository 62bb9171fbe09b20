#!/usr/bin/env bash
# All that takes too long for `make test`, one part after the other; a part that fails keeps no other from running. A table of parts,
# outcomes and times comes last; 1 when a part failed. What each part said is in target/soak/<part>.log as well.
#
#   scripts/soak.sh [PART...]   these parts only, in this order [default: all of them]
#   scripts/soak.sh --list      what there is
#
# Parts:
#
#   simulation  10,000,000 schedules of the simulated world (SOULBOX_SIM_SCHEDULES, SOULBOX_SIM_FIRST)
#   mutations   each rule of a sandbox's life broken in turn: the simulation must notice
#   churn       create, run, kill for SOAK_SECONDS (60), then look for leftovers and growth
#   daemon      the daemon's load tests, ten times on one daemon (SOULBOX_SOAK)
#   leaks       1,000 sandboxes, and a host as before (SOULBOX_LEAK_CYCLES)
#   crashes     30 SIGKILLs of our processes amid a mixed load (SOULBOX_CRASH_ROUNDS)
#   pauses      50 rounds of pauses, a heap of 1 GiB, 20 forks at once, 20 SIGKILLs amid pauses, PostgreSQL and others through a pause
#               (SOULBOX_PAUSE_ROUNDS, SOULBOX_PAUSE_HEAP_MIB, SOULBOX_FORKS, SOULBOX_PAUSE_KILLS, SOULBOX_PAUSE_SOFTWARE)
#   many        500 sandboxes at once (SOULBOX_MANY)
#   fronts      300 s of callers that race on two fronts of one database (SOULBOX_RACE_SECONDS)
#   openapi     schemathesis with 200 examples an operation (SOULBOX_FUZZ_EXAMPLES)
#   builds      builds of templates with 5 GB, 100,000 files, a bomb, and a program that is never ready
#   older       tests/compat with the older generation of the official packages
#   libraries   the code interpreter's suite on the whole list of libraries, template code-interpreter-v1
#   vm          the server on another kernel with cgroup v2 only, emulated; then that machine loses its power with a paused sandbox
#   guards      each guard of isolation taken away in turn: a test must notice
set -euo pipefail
cd "$(dirname "$0")/.."

ALL=(simulation mutations churn daemon leaks crashes pauses many fronts openapi builds older libraries vm guards)
# These run the release server with the base template.
NEED_SERVER=' churn leaks crashes pauses many fronts openapi builds older libraries vm '

simulation() {
    SOULBOX_SIM_SCHEDULES=${SOULBOX_SIM_SCHEDULES:-10000000} SOULBOX_SIM_FIRST=${SOULBOX_SIM_FIRST:-$(($(date +%s) << 24))} \
        cargo test --release --package soulbox-testkit --test simulation -- --nocapture
}
mutations() { tests/mutations/lifecycle.sh; }
churn() { bench/soak.sh; }
daemon() {
    cargo xtask guests
    SOULBOX_SOAK=${SOULBOX_SOAK:-10} cargo test --profile ci --package soulbox-envd --test black_box load -- --test-threads 1 --nocapture
}
leaks() { SOULBOX_LEAK_CYCLES=${SOULBOX_LEAK_CYCLES:-1000} end_to_end test_leaks.py; }
crashes() { SOULBOX_CRASH_ROUNDS=${SOULBOX_CRASH_ROUNDS:-30} end_to_end test_crashes.py; }
pauses() {
    export SOULBOX_PAUSE_ROUNDS=${SOULBOX_PAUSE_ROUNDS:-50} SOULBOX_PAUSE_HEAP_MIB=${SOULBOX_PAUSE_HEAP_MIB:-1024}
    export SOULBOX_FORKS=${SOULBOX_FORKS:-20} SOULBOX_PAUSE_KILLS=${SOULBOX_PAUSE_KILLS:-20} SOULBOX_PAUSE_SOFTWARE=yes
    end_to_end test_pause_{programs,software,rounds,crashes}.py test_forks.py
}
many() { SOULBOX_MANY=${SOULBOX_MANY:-500} end_to_end test_many.py; }
fronts() { SOULBOX_RACE_SECONDS=${SOULBOX_RACE_SECONDS:-300} end_to_end test_two_fronts.py; }
openapi() { SOULBOX_FUZZ_EXAMPLES=${SOULBOX_FUZZ_EXAMPLES:-200} end_to_end test_openapi.py; }
builds() {
    SOULBOX_LONG_TESTS=1 end_to_end test_builds.py
    scripts/setup.sh sdks
    SOULBOX_LONG_TESTS=1 tests/compat/run.sh python
}
older() {
    scripts/setup.sh sdks clients
    tests/compat/run.sh --generation old
}
libraries() {
    scripts/setup.sh sdks clients
    local template
    for template in base code-interpreter-slim code-interpreter-v1; do
        "${SOULBOX_BINARY:?}" template build "templates/$template" --data-dir "${SOULBOX_DATA_DIR:?}"
    done
    SOULBOX_LONG_TESTS=1 INTERPRETER_TEMPLATE=code-interpreter-v1 tests/compat/run.sh interpreter
}
vm() { tests/vm/run.sh; }
guards() { cargo xtask mutate; }

end_to_end() { .cache/venv-latest/bin/pytest -q -s "${@/#/tests/e2e/}"; }

parts=("$@")
case ${1:-} in
--list) sed -n '2,27s/^# \{0,1\}//p' "$0"; exit ;;
'') parts=("${ALL[@]}") ;;
esac
for part in "${parts[@]}"; do
    case " ${ALL[*]} " in
    *" $part "*) ;;
    *) printf 'error: there is no part %s\nhint: one of %s\n' "$part" "${ALL[*]}" >&2; exit 2 ;;
    esac
done

export SOULBOX_BINARY=${SOULBOX_BINARY:-target/release/soulbox}
export SOULBOX_DATA_DIR=${SOULBOX_DATA_DIR:-./.data}
logs=target/soak
mkdir -p "$logs"
interrupted=
trap 'interrupted=1' INT TERM
failed=0 table=()

# run NAME COMMAND...: its outcome and time become a row. Never called in a condition: there bash would go on after a failed line of a part.
run() {
    local name=$1 began=$SECONDS status
    shift
    printf '\n==> %s\n' "$name" >&2
    set +e
    (set -euo pipefail; "$@") 2>&1 | tee -i "$logs/$name.log"
    status=${PIPESTATUS[0]}
    set -e
    if [ "$interrupted" ]; then outcome=interrupted failed=1
    elif [ "$status" = 0 ]; then outcome=passed
    else outcome="FAILED ($status)" failed=1
    fi
    table+=("$(printf '%-12s %-14s %6d s' "$name" "$outcome" $((SECONDS - began)))")
}

server=yes
for part in "${parts[@]}"; do
    case $NEED_SERVER in *" $part "*) server=no ;; esac
done
# A binary that is named is taken as it is, and so is its data dir.
if [ "$server" = no ]; then
    outcome=passed
    if [ "$SOULBOX_BINARY" = target/release/soulbox ]; then run setup make setup; fi
    if [ "$outcome" = passed ]; then server=yes; fi
fi
for part in "${parts[@]}"; do
    if [ "$interrupted" ]; then
        table+=("$(printf '%-12s %s' "$part" 'not begun')")
        continue
    fi
    case $NEED_SERVER$server in
    *" $part "*no)
        table+=("$(printf '%-12s %s' "$part" 'not begun: no server')")
        continue
        ;;
    esac
    run "$part" "$part"
done

printf '\n'
printf '%s\n' "${table[@]}"
exit "$failed"
