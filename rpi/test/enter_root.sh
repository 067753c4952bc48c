#!/bin/bash
# enter_root.sh ROOT QEMU CPU COMMAND… — runs a command on that processor inside ROOT, without root and without a network:
# in namespaces of its own, with its own binfmt_misc (Linux 6.7 or newer).
root=$1 qemu=$2 cpu=$3
shift 3
# shellcheck disable=SC2016
exec unshare --user --map-root-user --mount --pid --fork --kill-child --net --mount-proc /bin/bash -c '
set -e
root=$1 qemu=$2 cpu=$3
shift 3
# Loopback is down in a new network namespace: SIOCSIFFLAGS with IFF_UP | IFF_RUNNING.
python3 -c "
import fcntl, socket, struct
with socket.socket() as any:
    fcntl.ioctl(any, 0x8914, struct.pack(\"16sh14x\", b\"lo\", 0x41))"
mount -t binfmt_misc binfmt_misc /proc/sys/fs/binfmt_misc
mount --rbind /dev "$root/dev"
mount -t proc proc "$root/proc"
mount --rbind /sys "$root/sys"
# Programs for arm64. F opens the emulator now, so that it need not lie inside.
printf "%s" ":cabochon-arm64:M::\\x7fELF\\x02\\x01\\x01\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x02\\x00\\xb7\\x00:\\xff\\xff\\xff\\xff\\xff\\xff\\xff\\x00\\xff\\xff\\xff\\xff\\xff\\xff\\xff\\xff\\xfe\\xff\\xff\\xff:$qemu:OCF" >/proc/sys/fs/binfmt_misc/register
exec env -i QEMU_CPU="$cpu" HOME=/root PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8 chroot "$root" "$@"
' _ "$root" "$qemu" "$cpu" "$@"
