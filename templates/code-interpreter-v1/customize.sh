#!/bin/sh
# Puts more Python packages into the root. Called by soulbox-build on the host, as root, in a mount namespace of its own:
#   $1              the root, `code-interpreter-slim`
#   SOULBOX_WHEELS  a folder with the wheels of requirements.txt
set -eu
umask 022
root=$1
packages=$root/usr/local/lib/python3.11/dist-packages
started=$(mktemp)

mkdir "$root/mnt/wheels"
mount --bind "$SOULBOX_WHEELS" "$root/mnt/wheels"
chroot "$root" sh -c 'exec python3 -m pip install --quiet --no-index --no-deps --no-compile --no-cache-dir /mnt/wheels/*.whl'
# That of opencv_python is linked with a screen's libraries, which are not here. Both packages have the same names, so this one has to
# be the last; then the other's libraries are for nobody.
chroot "$root" sh -c 'exec python3 -m pip install --quiet --no-index --no-deps --no-compile --no-cache-dir --force-reinstall /mnt/wheels/opencv_python_headless-*.whl'
rm -rf "$packages/opencv_python.libs"
umount "$root/mnt/wheels"
rmdir "$root/mnt/wheels"
# Tests of the libraries themselves, which no program imports.
find "$packages" -type d -name tests -prune -exec rm -rf {} +

# Compiled here, so that no sandbox has to at its first import; what was compiled below is passed over. Some packages carry files
# of an older or newer Python, which do not compile; they are not imported either.
chroot "$root" python3 -m compileall -q -j 0 /usr/local/lib/python3.11/dist-packages > /dev/null || true

# Anybody may install into /usr/local, as in base. Of the files below a change of mode would make copies.
find "$packages" -cnewer "$started" ! -type l -exec chmod a+rwX {} +
rm -f "$started"
rm -rf "$root"/tmp/* "$root"/var/tmp/* "$root/root/.cache/pip"
