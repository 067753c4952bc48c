#!/bin/sh
# Installs what lies beside this file into a folder of its own, without a network.  ./install.sh --help
#
# PREFIX/releases/ID   a virtual environment and the models of one bundle; .complete says that nothing is missing
# PREFIX/current       the release in use; it changes in one step, so that a power cut leaves the old or the new one
# PREFIX/.installed    what lies outside PREFIX, noted before it is written
#
# POSIX sh and `test -O`, so that dash runs it.
set -eu
umask 022
unset PYTHONPATH PYTHONHOME PYTHONSTARTUP

usage() {
  cat <<'HELP'
./install.sh [--prefix FOLDER] [--bin FOLDER] [--service http|wyoming] [--python PYTHON] [--no-compile]
./install.sh --uninstall [--prefix FOLDER]

Installs or upgrades cabochon with the models of this bundle. After an interruption, the same command goes on.

  --prefix FOLDER   where to (default: ~/.local/share/cabochon, for root /opt/cabochon)
  --bin FOLDER      where the command cabochon appears (default: ~/.local/bin, for root /usr/local/bin)
  --service NAME    start it with the machine, as root: http (cabochon serve) or wyoming (Home Assistant); repeatable
  --python PYTHON   the interpreter (default: python3)
  --no-compile      leave Python's byte code to the first start: faster here, slower there
  --uninstall       remove what was installed, and nothing else
HELP
}

say() { printf '%s\n' "$*"; }
refuse() {
  printf 'install.sh: %s\n' "$*" >&2
  exit 2
}

here=$(cd -- "$(dirname -- "$0")" && pwd -P)
root=$(id -u)
# Only for tests, which have no right to write where systemd reads.
units=${CABOCHON_UNIT_FOLDER:-/etc/systemd/system}
defaults=${CABOCHON_DEFAULTS_FOLDER:-/etc/default}
prefix='' bin='' services='' python='' compile=--compile action=install
case $0 in *uninstall.sh) action=uninstall prefix=$here ;; esac
while [ $# -gt 0 ]; do
  case $1 in
    --prefix | --bin | --service | --python)
      [ $# -gt 1 ] || refuse "$1 needs a value: see ./install.sh --help."
      case $1 in
        --prefix) prefix=$2 ;;
        --bin) bin=$2 ;;
        --python) python=$2 ;;
        --service)
          case $2 in http | wyoming) services="$services $2" ;; *) refuse "there is no service $2, only http and wyoming." ;; esac
          ;;
      esac
      shift
      ;;
    --no-compile) compile=--no-compile ;;
    --uninstall) action=uninstall ;;
    --help | -h)
      usage
      exit 0
      ;;
    *) refuse "$1 is unknown: see ./install.sh --help." ;;
  esac
  shift
done
if [ "$root" = 0 ]; then
  : "${prefix:=/opt/cabochon}" "${bin:=/usr/local/bin}"
else
  [ -n "${HOME:-}" ] || [ -n "$prefix" ] || refuse "there is no home directory: choose a folder with --prefix."
  : "${prefix:=${XDG_DATA_HOME:-$HOME/.local/share}/cabochon}" "${bin:=${HOME:-$prefix}/.local/bin}"
fi
case $prefix in /*) ;; *) prefix=$(pwd -P)/$prefix ;; esac
case $bin in /*) ;; *) bin=$(pwd -P)/$bin ;; esac
notes=$prefix/.installed

# ---------------------------------------------------------------------------------------------------- what is outside

hash_of() { sha256sum <"$1" | cut -d ' ' -f 1; }

note() { # KIND VALUE PATH
  grep -qxF -e "$1 $2 $3" "$notes" || printf '%s %s %s\n' "$1" "$2" "$3" >>"$notes"
  sync "$notes"
}

is_noted() { grep -qxF -e "$1 $2 $3" "$notes"; }

has_systemd() {
  [ -d /run/systemd/system ] && command -v systemctl >/dev/null && [ "$units" = /etc/systemd/system ]
}

put_link() { # TARGET PATH
  if [ -e "$2" ] || [ -L "$2" ]; then
    if [ "$(readlink -- "$2" || true)" != "$1" ]; then
      say "note: $2 is there already and is not cabochon's: it was left as it is. The command is $1"
    fi
    return 0
  fi
  mkdir -p -- "$(dirname -- "$2")"
  note link "$1" "$2"
  ln -s -- "$1" "$2"
}

put_file() { # KIND SOURCE PATH, replaced only if nobody changed it
  if [ -e "$3" ]; then
    if ! is_noted "$1" "$(hash_of "$3")" "$3"; then
      say "note: $3 is not as cabochon wrote it: it was left as it is."
      return 0
    fi
  fi
  note "$1" "$(hash_of "$2")" "$3"
  cp -- "$2" "$3.partial"
  chmod 644 "$3.partial"
  sync "$3.partial"
  mv -- "$3.partial" "$3"
}

put_service() { # NAME
  unit=cabochon-$1.service
  sed "s|@PREFIX@|$prefix|g" "$here/systemd/$unit" >"$prefix/.$unit"
  mkdir -p -- "$units" "$defaults"
  put_file unit "$prefix/.$unit" "$units/$unit"
  rm -f -- "$prefix/.$unit"
  # Options are the owner's from then on, an upgrade never replaces them.
  [ -e "$defaults/cabochon-$1" ] || put_file default "$here/systemd/cabochon-$1.default" "$defaults/cabochon-$1"
  if has_systemd; then
    systemctl daemon-reload
    systemctl enable --quiet "$unit"
    systemctl restart "$unit"
    say "service $unit is running; its options: $defaults/cabochon-$1; its log: journalctl -u $unit"
  else
    say "note: systemd is not running here: $unit was not started."
  fi
}

noted_services() { sed -n 's|^unit [0-9a-f]* .*/cabochon-\([a-z]*\)\.service$|\1|p' "$notes" | sort -u; }

take_away() { # KIND VALUE PATH
  case $1 in
    link) [ "$(readlink -- "$3" || true)" != "$2" ] || rm -f -- "$3" ;;
    unit)
      [ -e "$3" ] || return 0
      if has_systemd; then
        systemctl disable --now --quiet "$(basename -- "$3")" || true
        systemctl clean --what=cache "$(basename -- "$3")" 2>/dev/null || true
      fi
      remove_unless_changed "$@"
      ;;
    default) remove_unless_changed "$@" ;;
  esac
}

remove_unless_changed() {
  [ -e "$3" ] || return 0
  if [ "$(hash_of "$3")" = "$2" ]; then
    rm -f -- "$3"
  else
    # An earlier release may have put it there: its line may still come.
    is_noted "$1" "$(hash_of "$3")" "$3" || say "note: $3 was changed after it was installed: it was left as it is."
  fi
}

uninstall() {
  [ -f "$notes" ] || refuse "$prefix holds no installation of cabochon: name its folder with --prefix."
  lock
  while read -r kind value path; do
    take_away "$kind" "$value" "$path"
  done <"$notes"
  if has_systemd && [ "$root" = 0 ]; then systemctl daemon-reload; fi
  rm -rf -- "$prefix/releases" "$prefix/current" "$prefix/current.new"
  rm -f -- "$prefix/uninstall.sh" "$prefix/.probe" "$prefix"/.cabochon-*.service "$prefix/.uninstall.sh" "$prefix/.lock" "$notes"
  rmdir -- "$prefix" 2>/dev/null || say "note: $prefix holds files that are not cabochon's: they were left."
  say "cabochon was removed from $prefix."
}

lock() {
  exec 9>"$prefix/.lock"
  flock --nonblock 9 || refuse "another installation is working in $prefix: wait until it has ended."
}

if [ "$action" = uninstall ]; then
  uninstall
  exit 0
fi

# ------------------------------------------------------------------------------------------------- is this the machine

cd -- "$here"
[ -r bundle.conf ] && [ -r SHA256SUMS ] || refuse "$here is no unpacked bundle: run install.sh where the bundle was unpacked."
# Names and numbers of this bundle; the converter writes nothing into it that a shell would run.
. ./bundle.conf
case $(uname -s)-$(uname -m) in
  Linux-"$ARCHITECTURE") ;;
  *) refuse "this machine is $(uname -s) $(uname -m), and the bundle is for Linux $ARCHITECTURE: install a 64-bit system." ;;
esac
if [ -n "$services" ] && [ "$root" != 0 ] && [ "$units" = /etc/systemd/system ]; then
  refuse "a service is root's: say  sudo $0 --service${services}."
fi
case $services:$prefix in
  ?*:/home/* | ?*:/root/*) refuse "a service has no home directories, and $prefix is in one: leave --prefix out." ;;
esac
case $prefix in
  *[!A-Za-z0-9/._+-]*) refuse "$prefix has other characters than letters, digits, / . _ + and -: choose another --prefix." ;;
esac
find_python() {
  for candidate in ${python:-python3 python3.13 python3.12 python3.11}; do
    command -v "$candidate" >/dev/null || continue
    version=$("$candidate" -c 'import sys; print("%d.%d" % sys.version_info[:2])') || continue
    for known in $PYTHONS; do
      if [ "$version" = "$known" ]; then
        python=$(command -v "$candidate")
        return 0
      fi
    done
  done
  return 1
}
find_python || refuse "there is no Python of the versions $PYTHONS that this bundle is for: install one, or name it with --python."
"$python" -c 'import sys; sys.exit(sys.maxsize < 1 << 32)' ||
  refuse "$python is a 32-bit program: install a 64-bit system."
"$python" -c 'import venv' 2>/dev/null || refuse "$python cannot make virtual environments: install its standard library."

if [ -e "$prefix" ] && [ ! -f "$notes" ] && [ -n "$(ls -A -- "$prefix" 2>/dev/null)" ]; then
  refuse "$prefix is not empty and not cabochon's: choose another --prefix."
fi
mkdir -p -- "$prefix" || refuse "$prefix cannot be made: choose another --prefix."
[ -w "$prefix" ] || refuse "$prefix cannot be written: choose another --prefix."
[ -f "$notes" ] || : >"$notes"
lock

release=$prefix/releases/$BUNDLE_ID
say "cabochon $VERSION with $MODELS for Python $version, into $prefix"

# ------------------------------------------------------------------------------------------------------- the release

put_model_file() { # HASH PATH: a hard link where the same file is on this disk and ours, a copy otherwise
  target=$release/$2
  if [ -e "$target" ]; then
    [ "$(hash_of "$target")" != "$1" ] || return 0
    rm -f -- "$target"
  fi
  mkdir -p -- "$(dirname -- "$target")"
  for sums in "$prefix"/releases/*/SHA256SUMS; do
    [ -e "$sums" ] && [ "$sums" != "$release/SHA256SUMS" ] || continue
    other=$(dirname -- "$sums")/$(sed -n "s|^$1  ||p" "$sums" | head -n 1)
    if [ -f "$other" ] && [ "$(hash_of "$other")" = "$1" ] && ln -- "$other" "$target" 2>/dev/null; then return 0; fi
  done
  # Whoever owns a file can change it, so that a link to another user's would not be ours.
  if [ -O "$2" ] && chmod 644 "$2" 2>/dev/null && ln -- "$2" "$target" 2>/dev/null; then return 0; fi
  cp -- "$2" "$target.partial"
  chmod 644 "$target.partial"
  sync "$target.partial"
  [ "$(hash_of "$target.partial")" = "$1" ] || refuse "$target.partial is not what was copied: is the disk failing?"
  mv -- "$target.partial" "$target"
}

make_environment() {
  rm -rf -- "$release/venv"
  # Without pip: Debian keeps what a venv takes it from in a package of its own. The bundle brings a wheel of it.
  "$python" -m venv --without-pip "$release/venv"
  set -- wheels/pip-*.whl
  PIP_CONFIG_FILE=/dev/null "$release/venv/bin/python" "$1/pip" --isolated --disable-pip-version-check --no-cache-dir --quiet install \
    --no-index --no-deps --only-binary :all: --require-hashes "$compile" --root-user-action ignore \
    --find-links wheels --requirement "requirements-python$version.txt"
  # ai-edge-litert 2.3 looks at its library for graphics processors whatever it is told, and on a processor without dot
  # products (Raspberry Pi 4) that library ends the program with SIGILL.
  rm -f -- "$release"/venv/lib/python*/site-packages/ai_edge_litert/libLiteRtWebGpuAccelerator.so
}

make_release() {
  say "checking the bundle"
  sha256sum --check --strict --quiet SHA256SUMS || refuse "the bundle was altered or cut off: copy it again."
  eval "needed=\$PYTHON_$(printf %s "$version" | tr . _)_KB"
  if [ -O SHA256SUMS ] && ln -- SHA256SUMS "$prefix/.probe" 2>/dev/null; then
    rm -f -- "$prefix/.probe"
  else
    while read -r hash path; do
      case $path in models/*) ;; *) continue ;; esac
      for sums in "$prefix"/releases/*/SHA256SUMS; do
        [ "$sums" != "$release/SHA256SUMS" ] && grep -qs "^$hash  models/" "$sums" && continue 2
      done
      needed=$((needed + $(wc -c <"$path") / 1024 + 1))
    done <SHA256SUMS
  fi
  free=$(df -Pk -- "$prefix" | awk 'NR == 2 { print $4 }')
  had=0
  [ ! -d "$release" ] || had=$(du -sk -- "$release" | cut -f 1)
  [ "$((free + had))" -ge "$needed" ] ||
    refuse "$prefix has $((free / 1024)) MB free, and up to $((needed / 1024)) MB are needed: make room, or choose another --prefix."
  mkdir -p -- "$release"
  cp -- SHA256SUMS "$release/SHA256SUMS"
  cp -- bundle.conf "$release/bundle.conf"
  say "putting the models in place"
  while read -r hash path; do
    case $path in models/*) put_model_file "$hash" "$path" ;; esac
  done <SHA256SUMS
  rm -f -- "$release/model"
  ln -s "models/$FIRST_MODEL" "$release/model"
  if [ ! -e "$release/.environment" ]; then
    say "making the environment: some minutes on a small machine"
    make_environment
    sync -f "$release"
    : >"$release/.environment"
  fi
  "$release/venv/bin/cabochon" --version >/dev/null || refuse "what was installed in $release/venv does not run."
  sync -f "$release"
  : >"$release/.complete"
  sync "$release/.complete"
}

if [ -e "$release/.complete" ] && "$release/venv/bin/cabochon" --version >/dev/null 2>&1; then
  say "this release is installed already"
else
  # What does not run is made anew: a cut-off removal, or another Python behind the same name.
  "$release/venv/bin/cabochon" --version >/dev/null 2>&1 || rm -f -- "$release/.environment"
  rm -f -- "$release/.complete"
  make_release
fi

ln -sfn -- "releases/$BUNDLE_ID" "$prefix/current.new"
mv -T -- "$prefix/current.new" "$prefix/current"
cp -- install.sh "$prefix/.uninstall.sh"
mv -- "$prefix/.uninstall.sh" "$prefix/uninstall.sh"
sync -f "$prefix"

put_link "$prefix/current/venv/bin/cabochon" "$bin/cabochon"
for name in $( (printf '%s\n' $services; noted_services) | sort -u); do put_service "$name"; done

for other in "$prefix"/releases/*; do
  [ "$other" != "$release" ] && [ -e "$other" ] || continue
  # First what says that it is whole: should the removal be cut off, it is not taken for a release.
  rm -f -- "$other/.complete" "$other/.environment"
  sync -f "$prefix"
  rm -rf -- "$other"
done

case :$PATH: in *":$bin:"*) command=cabochon ;; *) command=$bin/cabochon ;; esac
say "done. See whether it fits:  $command doctor $prefix/current/model"
say "Then:  $command translate $prefix/current/model SOUND.wav --source English --target German"
