#!/bin/bash
# Pid 1 of the machine that tests/vm/run.sh boots: cgroup v2 and nothing else, a server on port 3000.
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev 2> /dev/null
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
for place in /dev/shm /run /tmp; do mount -t tmpfs tmpfs $place; done
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -o remount,rw /
for module in virtio_net overlay btrfs loop veth nf_tables nft_chain_nat nft_masq nft_ct nft_fib nft_connlimit nft_limit; do
    modprobe $module || echo "no module $module"
done
# The addresses of qemu's user network.
ip link set lo up
for path in /sys/class/net/e*; do
    ip link set "${path##*/}" up
    ip address add 10.0.2.15/24 dev "${path##*/}"
    ip route add default via 10.0.2.2
done
echo 'nameserver 10.0.2.3' > /etc/resolv.conf

/soulbox doctor --data-dir /data || echo 'vm: doctor refuses'
/soulbox serve --data-dir /data --criu / --listen 0.0.0.0:3000 --insecure &
until /soulbox env --data-dir /data 2> /dev/null; do sleep 1; done
# Seen by check.py: the limits of one sandbox or slot, and how many have a cgroup here.
while :; do
    for slot in /sys/fs/cgroup/soulbox-*/[0-9]*; do
        [ ! -d "$slot" ] || echo "vm: limits $(cat "$slot/pids.max" "$slot/cpu.max" | tr '\n' ' ')"
        break
    done
    echo "vm: cgroups $(ls -d /sys/fs/cgroup/soulbox-*/[0-9]* 2> /dev/null | wc -l)"
    sleep 2
done
