# The bash kernel: a shell that evaluates what soulbox-interpreter sends. docs/kernels.md has the protocol, whose fields end
# with NUL here because a shell reads no JSON. Names begin with `_soulbox` because code shares the shell with them.

exec {_soulbox_in}<&0 {_soulbox_out}>&0 < /dev/null
# When memory is short, the code that took it shall end, and not the interpreter.
{ echo 500 > /proc/self/oom_score_adj; } 2> /dev/null
# An interrupt ends what the code started; the shell itself goes on.
trap : INT
shopt -s expand_aliases

# A variable for one execution: what it was before is noted first.
_soulbox_variable() {
    local _soulbox_name=${1%%=*}
    # A shell has no variables of other names.
    [[ $_soulbox_name =~ ^[A-Za-z_][A-Za-z0-9_]*$ ]] || return 0
    if [ -v "$_soulbox_name" ]; then
        _soulbox_restore+=("$_soulbox_name=${!_soulbox_name}")
    else
        _soulbox_unset+=("$_soulbox_name")
    fi
    export "$1"
}

_soulbox_seeded=
read -r _soulbox_seeded 2> /dev/null < /run/soulbox/generation
printf 'ready\0' >&"$_soulbox_out"
while :; do
    _soulbox_unset=() _soulbox_restore=()
    while :; do
        IFS= read -r -d '' -u "$_soulbox_in" _soulbox_field || exit 0
        [ -n "$_soulbox_field" ] || break
        _soulbox_variable "$_soulbox_field"
    done
    IFS= read -r -d '' -u "$_soulbox_in" _soulbox_code || exit 0
    # A copy of the sandbox goes on from the same memory: it gets other numbers. docs/pause.md.
    if read -r _soulbox_field 2> /dev/null < /run/soulbox/generation && [ "$_soulbox_field" != "$_soulbox_seeded" ]; then
        _soulbox_seeded=$_soulbox_field RANDOM=$SRANDOM
    fi
    # Not in a function: what the code declares is to stay. Both outputs are one, as in a terminal.
    eval "$_soulbox_code" 2>&1
    _soulbox_status=$?
    for _soulbox_field in "${_soulbox_unset[@]}"; do unset -v "$_soulbox_field"; done
    for _soulbox_field in "${_soulbox_restore[@]}"; do export "$_soulbox_field"; done
    [ "$_soulbox_status" = 0 ] || printf '%s\0' "$_soulbox_status" >&"$_soulbox_out"
    printf 'done\0' >&"$_soulbox_out"
done
