#!/bin/sh
# Every way to change a file or name, one at a time, on every rung of the file probes and on ext4, xfs and btrfs: each is seen
# as well as the table of docs/OPERATIONS.md says (tests/src/ways).
# kernels: 6.1 6.12
# disks: ext4=128M xfs=512M btrfs=256M
# modules: ext4 xfs btrfs
# tools: mkfs.ext4 mkfs.xfs mkfs.btrfs
# programs: ways
# default: 6.12
# timeout: 1800
. /lib.sh
for fs in ext4 xfs btrfs; do
    mount_new $fs
    for rung in fentry kprobe syscall; do
        step "$fs, rung $rung"
        ways "/mnt/$fs/$rung" $rung > /run/ways.log 2>&1 || { cat /run/ways.log; fail "$fs, rung $rung: see above"; }
        head -n 1 /run/ways.log
        grep -c full /run/ways.log
    done
    umount "/mnt/$fs"
done
