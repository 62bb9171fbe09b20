#!/bin/sh
# Called by soulbox-build on the host, as root, in a mount namespace of its own: $1 is the root, `base`.
set -eu
root=$1
chroot "$root" use-node 22
