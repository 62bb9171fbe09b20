#!/usr/bin/env bash
# CRIU by hand, for tests/checkpoint.rs. CRIU is the folder that `scripts/setup.sh criu` makes, PLACE an empty one.
#
#   criu.sh dump IMAGES PID [OPTION...]
#   criu.sh restore IMAGES ROOT_FD SHM_FD GUESTS_FD CGROUP_FD...     stays until the restored tree has ended
#
# CRIU calls it as well, at stages that it names in CRTOOLS_SCRIPT_ACTION.
set -euo pipefail

# Namespaces: the network is made anew, without CRIU's help, so established TCP must stay within the tree. No iptables.
both=(--verbosity=4 --shell-job --manage-cgroups=ignore --file-locks --empty-ns net --tcp-established --network-lock skip)

criu() {
    local libraries="$CRIU/usr/lib/$(uname -m)-linux-gnu"
    exec "$libraries"/ld-linux-*.so.* --library-path "$libraries" "$CRIU/usr/sbin/criu" "$@"
}

# Over the host's, in a mount namespace of its own: CRIU keeps what it found out about the kernel there.
own_run() { mount -t tmpfs -o mode=0755 tmpfs /run; }

case ${CRTOOLS_SCRIPT_ACTION:-$1} in
dump)
    # A dump that hangs is a sandbox lost, not a test that hangs.
    exec timeout --kill-after=5 30 unshare --mount "$0" dump-here "${@:2}"
    ;;
dump-here)
    images=$2 pid=$3
    own_run
    external=(--external 'mnt[/usr/lib/soulbox]:guests' --external 'mnt[/dev/shm]:shm')
    for mask in $(awk '$4 == "/null" { print $5 }' "/proc/$pid/mountinfo"); do
        external+=(--external "mnt[$mask]:null")
    done
    criu dump --tree "$pid" --images-dir "$images" --log-file dump.log --ghost-limit 100M --link-remap --skip-in-flight \
        "${both[@]}" "${external[@]}" "${@:4}"
    ;;
restore)
    # A process that is in the cgroups and makes a cgroup namespace there gives both to the tree.
    for cgroup in "${@:6}"; do
        echo 0 >&"$cgroup"
        exec {cgroup}>&-
    done
    exec unshare --mount --cgroup "$0" restore-here "${@:2:4}"
    ;;
restore-here)
    images=$2
    own_run
    # Not below PLACE: the restored tree's root looks these up as its own user, for whom a closed folder above ends the way.
    mounts=/run/mounts
    mkdir -p $mounts/root $mounts/shm $mounts/guests
    for pair in "$3 root" "$4 shm" "$5 guests"; do
        read -r mount name <<< "$pair"
        mount --no-canonicalize --move "/proc/self/fd/$mount" "$mounts/$name"
        exec {mount}>&-
    done
    criu restore --images-dir "$images" --log-file restore.log --root $mounts/root --action-script "$0" \
        --external "mnt[guests]:$mounts/guests" --external "mnt[shm]:$mounts/shm" --external 'mnt[null]:/dev/null' "${both[@]}"
    ;;
setup-namespaces)
    # The new network namespace is as empty as the kernel makes it, its settings at their defaults.
    nsenter --target "$CRTOOLS_INIT_PID" --net sh -c \
        'ip link set lo up && echo 0 > /proc/sys/net/ipv4/ip_unprivileged_port_start'
    ;;
post-resume)
    # Renamed into place, so that whoever sees the file can read all of it.
    echo "$CRTOOLS_INIT_PID" > "$PLACE/pid.new"
    mv "$PLACE/pid.new" "$PLACE/pid"
    ;;
esac
