#!/bin/sh
# The kernel's own log of all writes (dm-log-writes) is the witness of what a mark must hold: between the two notes around
# it, some prefix of that log must give the same bytes. Raw writes, ext4 and xfs, under load.
# kernels: 6.1 6.12
# disks: source=96M target=96M log=3G journal=1G
# modules: ext4 xfs loop dm-mod dm-log-writes
# tools: mkfs.ext4 mkfs.xfs e2fsck xfs_repair fio dmsetup
# default: 6.1
# timeout: 1200
# compare: source target
# log-writes: log source journal
. /logged.sh
# Waits until something has been written.
written() {
    before=$(cat "/sys/block/$1/stat")
    while [ "$before" = "$(cat "/sys/block/$1/stat")" ]; do usleep 1000; done
}

logged_volume
step "raw writes, which pause now and then"
begin_raw 4
for turn in 1 2 3; do
    written "$VOLUME_NAME"
    witnessed_mark "raw$turn"
done
end_raw
discards_and_file_systems
