#!/bin/sh
# Called by soulbox-build on the host, as root, in a mount namespace of its own:
#   $1               the root, `base`
#   SOULBOX_NPM_DIR  the recipe's npm packages, as `npm pack` names them
set -eu
umask 022
root=$1
tar -xzf "$SOULBOX_NPM_DIR"/oven-bun-*.tgz -C "$root/usr/local/bin" --strip-components=2 --no-same-owner package/bin/bun
chmod 755 "$root/usr/local/bin/bun"
ln -s bun "$root/usr/local/bin/bunx"
# It must run here, on this host's processor.
chroot "$root" bun --version
