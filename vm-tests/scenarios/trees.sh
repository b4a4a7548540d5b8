#!/bin/sh
# A directory tree is protected on ext4 and xfs, by each rung of the file probes, under a random load of every kind of
# operation, io_uring among them: at each mark the target is the tree, with all that belongs to it.
# kernels: 6.1 6.12
# disks: ext4=256M xfs=512M journal=1G
# modules: ext4 xfs
# tools: mkfs.ext4 mkfs.xfs
# programs: trees
# default: 6.12
# timeout: 1800
. /lib.sh
mount_journal
mkdir -p /journal/tmp
export AFTERWRITE_TMP=/journal/tmp AFTERWRITE_BIN=afterwrite AFTERWRITE_PATIENCE=600
for fs in ext4 xfs; do
    mount_new $fs
    for rung in fentry kprobe syscall; do
        step "$fs, rung $rung"
        mkdir "/mnt/$fs/$rung"
        trees "/mnt/$fs/$rung" $rung 3 > /run/trees.log 2>&1 || { cat /run/trees.log; fail "$fs, rung $rung: see above"; }
        grep '^mark' /run/trees.log
    done
    umount "/mnt/$fs"
done
