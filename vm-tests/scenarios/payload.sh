#!/bin/sh
# With payload every instant can be restored, and the kernel's own log of all writes (dm-log-writes) is the witness of
# what it must hold: marks as in log-writes.sh, and instants at random between them (xtask/src/log_writes/instants.rs).
# kernels: 6.1 6.12
# disks: source=96M target=96M log=3G journal=1500M
# modules: ext4 xfs loop dm-mod dm-log-writes
# tools: mkfs.ext4 mkfs.xfs e2fsck xfs_repair fio dmsetup
# default: 6.12
# timeout: 900
# compare: source target
# log-writes: log source journal 40
. /lib.sh
VOLUME=/dev/mapper/volume
SECTORS=$(blockdev --getsz "$(disk source)")

# As in log-writes.sh: nothing that writes may flush, or the log were not in the order of completion. So FUA and flushes
# of the file systems end at the volume, which says it has no cache; what they order, it completes in that order.
flush() { dd if=/dev/null of=/dev/mapper/logged conv=fsync 2> /dev/null; }
witnessed_mark() {
    flush
    dmsetup message logged 0 mark "before-$1"
    mark "$1"
    flush
    dmsetup message logged 0 mark "after-$1"
}
# raw DEPTH: writes with so many under way at once; marks are called so that the host knows how many.
raw() {
    rm -f /run/enough
    {
        while [ ! -e /run/enough ]; do
            fio --name=raw --filename=$VOLUME --number_ios=400 --bsrange=512-64k --rw=randwrite --direct=1 \
                --randrepeat=0 --ioengine=libaio --iodepth="$1" --thinktime=60000 --thinktime_blocks=8 \
                > /run/fio.log || exit 1
        done
    } &
    raw_pid=$!
    for turn in 1 2 3; do
        sleep 2
        witnessed_mark "depth$1-$turn"
    done
    : > /run/enough
    wait $raw_pid || fail "fio could not write"
    witnessed_mark "depth$1-end"
}

step "a volume on top of a log of its writes"
mount_journal
dmsetup create logged --table "0 $SECTORS log-writes $(disk source) $(disk log)"
wait_for 10 "the log's device" test -b /dev/mapper/logged
dmsetup create volume --table "0 $SECTORS linear /dev/mapper/logged 0"
wait_for 10 "the volume" test -b $VOLUME
VOLUME_NAME=dm-$(dmsetup info -c --noheadings -o minor volume)
echo "write through" > "/sys/block/$VOLUME_NAME/queue/write_cache"
start_protect $VOLUME "$(disk target)" --mark-every never --capture payload
witnessed_mark begin

step "raw writes, one at a time"
raw 1
step "raw writes, four at a time"
raw 4
blkdiscard -o 8M -l 16M $VOLUME
witnessed_mark discarded

for fs in ext4 xfs; do
    step "$fs"
    force=-F
    [ $fs = ext4 ] || force=-f
    # These have mkfs.xfs make a file system this small.
    TEST_DEV=. TEST_DIR=. QA_CHECK_FS=1 mkfs.$fs -q $force $VOLUME
    mkdir -p /mnt/volume
    mount -t $fs $VOLUME /mnt/volume
    begin_load /mnt/volume
    for turn in 1 2 3; do
        files "/mnt/volume/some$turn" 4 256
        witnessed_mark "$fs-$turn"
    done
    end_load
    umount /mnt/volume
    witnessed_mark "$fs-end"
done

step "stop"
stop_protect
same $VOLUME "$(disk target)"
for fs in ext4 xfs; do
    for turn in 1 2 3; do
        expect_sound "$fs-$turn" $fs
    done
done
dmsetup status logged | grep -v logging_disabled || fail "the log was given up"
dmsetup remove volume
dmsetup remove logged
umount /journal
