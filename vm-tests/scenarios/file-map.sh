#!/bin/sh
# Files on ext4 and xfs are saved by close, rename and fsync, seen in the best way the kernel has and by system calls: they lie where
# their maps say, and copies made by these are equal.
# kernels: 6.1 6.12
# disks: ext4=128M xfs=512M journal=256M
# modules: ext4 xfs
# tools: mkfs.ext4 mkfs.xfs
# programs: maps
# default: no
# timeout: 1800
. /lib.sh
mount_journal
mkdir -p /journal/tmp
export AFTERWRITE_TMP=/journal/tmp AFTERWRITE_BIN=afterwrite AFTERWRITE_PATIENCE=300
for fs in ext4 xfs; do
    mount_new $fs
    for rung in best syscall; do
        step "$fs, rung $rung"
        tree=/mnt/$fs/$rung
        target=/journal/$fs-$rung
        mkdir "$tree"
        maps "$tree" "/journal/maps-$fs-$rung" "$target" $rung > /run/maps.log 2>&1 \
            || { cat /run/maps.log; fail "$fs, rung $rung: see above"; }
        grep -E "extents|fsyncs" /run/maps.log
        sums "$tree" > /run/tree.sums
        rm "$target/.afterwrite-copied"
        expect_sums "$target" /run/tree.sums
    done
    umount "/mnt/$fs"
done
