#!/bin/sh
# Puts the Python packages into the root. Called by soulbox-build on the host, as root, in a mount namespace of its own:
#   $1              the root, `base` with the recipe's files
#   SOULBOX_DEBS    a folder with the recipe's Debian packages
#   SOULBOX_WHEELS  a folder with the wheels of requirements.txt
set -eu
umask 022
root=$1
packages=$root/usr/local/lib/python3.11/dist-packages

# Of the fonts for Chinese, Japanese and Korean the ones without serifs: the others are as large once more.
mkdir "$root/mnt/debs"
mount --bind "$SOULBOX_DEBS" "$root/mnt/debs"
chroot "$root" sh -c 'exec dpkg --install --path-exclude="/usr/share/fonts/*/NotoSerif*" /mnt/debs/*.deb'
umount "$root/mnt/debs"
rmdir "$root/mnt/debs"

mkdir "$root/mnt/wheels"
mount --bind "$SOULBOX_WHEELS" "$root/mnt/wheels"
chroot "$root" sh -c 'exec python3 -m pip install --quiet --no-index --no-deps --no-compile --no-cache-dir /mnt/wheels/*.whl'
umount "$root/mnt/wheels"
rmdir "$root/mnt/wheels"
# Tests of the libraries themselves, which no program imports.
find "$packages" -type d -name tests -prune -exec rm -rf {} +

# Compiled here, so that no sandbox has to at its first import. Some packages carry files of an older or newer Python, which do
# not compile; they are not imported either.
chroot "$root" python3 -m compileall -q -j 0 /usr/local/lib/python3.11/dist-packages > /dev/null || true
# matplotlib searches all fonts at its first use.
chroot "$root" env HOME=/root python3 -c 'import matplotlib.font_manager'

# Anybody may install into /usr/local, as in base.
chmod -R a+rwX "$packages"
rm -rf "$root"/tmp/* "$root"/var/tmp/* "$root/root/.cache/pip"
