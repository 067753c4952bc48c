#!/bin/bash
# boot_root.sh ROOT — starts ROOT's systemd as the first process of namespaces of its own, without a network: needs root.
# Standard output is the system's console. It ends when this script is killed.
root=$1
# shellcheck disable=SC2016
exec unshare --mount --uts --ipc --net --cgroup --pid --fork --kill-child /bin/bash -c '
set -e
root=$1
python3 -c "
import fcntl, socket, struct
with socket.socket() as any:
    fcntl.ioctl(any, 0x8914, struct.pack(\"16sh14x\", b\"lo\", 0x41))"
mount --bind "$root" "$root"
mount -t proc proc "$root/proc"
mount -t sysfs sysfs "$root/sys"
mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
mount --rbind /dev "$root/dev"
mount -t tmpfs tmpfs "$root/run"
mount -t tmpfs tmpfs "$root/tmp"
mkdir -p "$root/run/old"
cd "$root"
pivot_root . run/old
umount -l /run/old
exec env -i container=cabochon-test PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8 \
  /usr/lib/systemd/systemd --system --unit=basic.target --log-target=journal --show-status=0
' _ "$root"
