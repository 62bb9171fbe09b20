#!/usr/bin/env bash
# root.sh FOLDER: the least root of a sandbox, with BusyBox of the folder CRIU (see criu.sh).
set -euo pipefail
umask 022
cd "$1"
mkdir -p bin dev/{pts,shm} etc home/user proc root sys tmp usr/lib/soulbox
chmod 1777 tmp
chown 1000:1000 home/user
while read -r name major minor; do
    mknod -m 666 "dev/$name" c "$major" "$minor"
done <<< $'null 1 3\nzero 1 5\nfull 1 7\nrandom 1 8\nurandom 1 9\ntty 5 0'
printf '%s\n' root:x:0:0::/root:/bin/sh user:x:1000:1000::/home/user:/bin/sh > etc/passwd
printf '%s\n' root:x:0: user:x:1000: > etc/group
cp "$CRIU/usr/bin/busybox" bin/
for applet in mkfifo nc sh sleep; do
    ln -s busybox "bin/$applet"
done
