#!/bin/sh
# With payload every instant can be restored, and the kernel's own log of all writes (dm-log-writes) is the witness of
# what it must hold: marks as in log-writes.sh, and instants at random between them (xtask/src/log_writes/instants.rs).
# kernels: 6.1 6.12
# disks: source=96M target=96M log=3G journal=1500M
# modules: ext4 xfs loop dm-mod dm-log-writes
# tools: mkfs.ext4 mkfs.xfs e2fsck xfs_repair fio dmsetup
# default: no
# timeout: 900
# compare: source target
# log-writes: log source journal 40
. /logged.sh
# Marks are called so that the host knows how many writes were under way at once.
raw() {
    begin_raw "$1"
    for turn in 1 2 3; do
        sleep 2
        witnessed_mark "depth$1-$turn"
    done
    end_raw
    witnessed_mark "depth$1-end"
}

logged_volume --capture payload
witnessed_mark begin
step "raw writes, one at a time"
raw 1
step "raw writes, four at a time"
raw 4
discards_and_file_systems
