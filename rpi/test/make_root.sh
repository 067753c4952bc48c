#!/bin/bash
# make_root.sh FOLDER bookworm|trixie [ARCHITECTURE] — what a 64-bit Raspberry Pi OS is made of: Debian's own packages for
# arm64 (or another architecture), unpacked, and an emulator, without root and without installing anything here.
# Exit status 75 means that it cannot be made here, in one sentence on standard output.
set -euo pipefail
work=$(mkdir -p "$1" && cd "$1" && pwd)
suite=$2 architecture=${3:-arm64}
keyring=/usr/share/keyrings/debian-archive-keyring.gpg
cannot() {
  echo "$*"
  exit 75
}

mirror=${DEBIAN_MIRROR:-}
[ -n "$mirror" ] || mirror=$(apt-get indextargets --format '$(SITE)' 2>/dev/null | grep '/debian/*$' | head -n 1 || true)
[ -n "$mirror" ] || cannot "no mirror of Debian is known: set DEBIAN_MIRROR to the address of one."
[ -r "$keyring" ] || cannot "$keyring is missing: install debian-archive-keyring."

# A package database of its own, so that this machine's is neither read nor written.
make_database() { # FOLDER SUITE ARCHITECTURE
  mkdir -p "$1"/lists/partial "$1"/cache/archives/partial "$1"/etc/preferences.d "$1"/etc/apt.conf.d "$1"/state
  : >"$1/status"
  echo "deb [signed-by=$keyring] $mirror $2 main" >"$1/sources.list"
  cat >"$1/apt.conf" <<X
APT::Architecture "$3"; APT::Architectures "$3"; APT::Sandbox::User ""; APT::Install-Recommends "false";
Dir::State "$1/state"; Dir::State::status "$1/status"; Dir::State::lists "$1/lists"; Dir::Cache "$1/cache";
Dir::Etc::sourcelist "$1/sources.list"; Dir::Etc::sourceparts "-"; Dir::Etc::parts "$1/etc/apt.conf.d";
Dir::Etc::preferencesparts "$1/etc/preferences.d"; Acquire::Languages "none"; Debug::NoLocking "true";
X
  APT_CONFIG=$1/apt.conf apt-get -qq update || cannot "the mirror $mirror does not answer for $2 $3."
}

# qemu of trixie: that of bookworm shows programs this machine's /proc/cpuinfo, and onnxruntime crashes.
if [ ! -x "$work/qemu-aarch64" ]; then
  folder=$(mktemp -d "$work/.qemu-XXXXXX")
  make_database "$folder" trixie amd64
  (
    cd "$folder"
    APT_CONFIG=$folder/apt.conf apt-get -qq download qemu-user || cannot "the mirror $mirror does not give qemu-user."
    dpkg-deb --fsys-tarfile qemu-user_*.deb | tar -x ./usr/bin/qemu-aarch64
  )
  mv "$folder/usr/bin/qemu-aarch64" "$work/qemu-aarch64"
  rm -rf "$folder"
fi

root=$work/$suite
[ "$architecture" = arm64 ] || root=$root-$architecture
[ ! -e "$root/.complete" ] || exit 0
rm -rf "$root"
database=$(mktemp -d "$work/.$suite-XXXXXX")
make_database "$database" "$suite" "$architecture"
# python3 without python3-venv: the bundle brings pip.
APT_CONFIG=$database/apt.conf apt-get -qq -y install --download-only \
  python3 bash dash coreutils libc-bin grep sed gawk findutils tar util-linux libportaudio2 libasound2-plugins alsa-utils systemd dbus >/dev/null ||
  cannot "the mirror $mirror does not give the packages of $suite."
mkdir -p "$root"/usr/{bin,sbin,lib} "$root"/{dev,proc,sys,tmp,root,etc/systemd/system,home/pi}
for name in bin sbin lib; do ln -s "usr/$name" "$root/$name"; done
for package in "$database"/cache/archives/*.deb; do dpkg-deb --fsys-tarfile "$package"; done |
  tar -xi --keep-directory-symlink --no-same-owner --exclude='./usr/share/doc/*' --exclude='./usr/share/man/*' \
    --exclude='./usr/share/locale/*' --exclude='./dev/*' -C "$root"
# The few things that the packages' scripts would have done.
printf 'root:x:0:0:root:/root:/bin/bash\nmessagebus:x:100:100::/nonexistent:/usr/sbin/nologin\n' >"$root/etc/passwd"
printf 'root:x:0:\naudio:x:29:\nmessagebus:x:100:\n' >"$root/etc/group"
[ -e "$root/usr/bin/awk" ] || ln -s gawk "$root/usr/bin/awk"
rm -rf "$database"
touch "$root/.complete"
