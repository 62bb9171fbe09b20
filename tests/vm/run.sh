#!/usr/bin/env bash
# The server on a machine unlike this one: Debian forky's kernel, cgroup v2 only, emulated by qemu (no KVM). Part of `make soak`.
# Then that machine loses its power with a paused sandbox on its disk, and starts again.
#
#   SOULBOX_BINARY=... SOULBOX_DATA_DIR=... tests/vm/run.sh
#
# The data dir has the base template; its pool is copied. The machine's port is on 127.0.0.1, and gone afterwards.
set -euo pipefail
cd "$(dirname "$0")/../.."
binary=${SOULBOX_BINARY:?names the server}
data=${SOULBOX_DATA_DIR:?names a data dir with the base template}
port=${VM_PORT:-3960}
place=$PWD/target/vm

scripts/setup.sh vm
mkdir -p "$place"
[ -s "$data/pool.img" ] || { echo "error: $data has no pool in a file" >&2; exit 1; }

machine=
finish() {
    power_off
    rm -rf "$place/root" "$place/disk.img"
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

rm -rf "$place/root"
cp -a .cache/vm "$place/root"
mkdir "$place/root/data"
cp "$binary" "$place/root/soulbox"
cp tests/vm/init.sh "$place/root/init.sh"
cp --sparse=always "$data/pool.img" "$place/root/data/pool.img"
cp "$place/root"/boot/vmlinuz-* "$place/kernel"
cp "$place/root"/boot/initrd.img-* "$place/initrd"
rm -f "$place/disk.img"
truncate --size 20G "$place/disk.img"
mke2fs -q -t ext4 -d "$place/root" "$place/disk.img"
rm -rf "$place/root"

# Only what its kernel has sent to the disk is left.
power_off() {
    [ -z "$machine" ] || kill -KILL "$machine" 2> /dev/null || true
    wait 2> /dev/null || true
    machine=
}

power_on() {
    : > "$place/console.log"
    # One thread for both processors: with two, one may run an instruction that the other's kernel is just changing, and that kernel dies.
    qemu-system-x86_64 -machine q35 -accel tcg,thread=single -cpu max -smp 2 -m 4096 -display none -no-reboot \
        -kernel "$place/kernel" -initrd "$place/initrd" \
        -append 'root=/dev/vda rw console=ttyS0 init=/init.sh panic=-1 quiet' \
        -drive "file=$place/disk.img,format=raw,if=virtio,cache=unsafe" \
        -netdev "user,id=net,hostfwd=tcp:127.0.0.1:$port-:3000" -device virtio-net-pci,netdev=net \
        -serial "file:$place/console.log" > "$place/qemu.log" 2>&1 &
    machine=$!

    for _ in $(seq 300); do
        ! grep -qa '^vm: cgroups' "$place/console.log" || break
        kill -0 "$machine" 2> /dev/null || { cat "$place/qemu.log" "$place/console.log" >&2; exit 1; }
        sleep 1
    done
    exports=$(tr -d '\r' < "$place/console.log" | grep -a '^export E2B_API_KEY=') || { tail -50 "$place/console.log" >&2; exit 1; }
    eval "$exports"
    export E2B_API_KEY E2B_API_URL=http://127.0.0.1:$port E2B_SANDBOX_URL=http://127.0.0.1:$port
}

check() {
    .cache/venv-latest/bin/python "tests/vm/$1.py" "${@:2}" || { tail -30 "$place/console.log" >&2; exit 1; }
}

power_on
check check "$place/console.log"
check paused before "$place/paused"
power_off
power_on
check paused after "$place/paused"
