#!/bin/sh
# The kernel's own log of all writes (dm-log-writes) is the witness of what a mark must hold: between the two notes around
# it, some prefix of that log must give the same bytes. Raw writes, ext4 and xfs, under load.
# kernels: 6.1 6.12
# disks: source=96M target=96M log=3G journal=1G
# modules: ext4 xfs loop dm-mod dm-log-writes
# tools: mkfs.ext4 mkfs.xfs e2fsck xfs_repair fio dmsetup
# default: 6.1
# timeout: 400
# compare: source target
# log-writes: log source journal
. /lib.sh
VOLUME=/dev/mapper/volume
SECTORS=$(blockdev --getsz "$(disk source)")

# The log holds a write once it was flushed, and then in the order of completion; but those with FUA at once, ahead of
# others that were completed before. So nothing that writes may flush: the volume is a device on top that says it has no
# cache. Flushes are sent past it, around each mark.
flush() { dd if=/dev/null of=/dev/mapper/logged conv=fsync 2> /dev/null; }
# Waits until something has been written.
written() {
    before=$(cat "/sys/block/$1/stat")
    while [ "$before" = "$(cat "/sys/block/$1/stat")" ]; do usleep 1000; done
}
witnessed_mark() {
    flush
    dmsetup message logged 0 mark "before-$1"
    mark "$1"
    flush
    dmsetup message logged 0 mark "after-$1"
}

step "a volume on top of a log of its writes"
mount_journal
dmsetup create logged --table "0 $SECTORS log-writes $(disk source) $(disk log)"
wait_for 10 "the log's device" test -b /dev/mapper/logged
dmsetup create volume --table "0 $SECTORS linear /dev/mapper/logged 0"
wait_for 10 "the volume" test -b $VOLUME
VOLUME_NAME=dm-$(dmsetup info -c --noheadings -o minor volume)
echo "write through" > "/sys/block/$VOLUME_NAME/queue/write_cache"
start_protect $VOLUME "$(disk target)" --mark-every never

step "raw writes, which pause now and then"
{
    while [ ! -e /run/enough ]; do
        fio --name=raw --filename=$VOLUME --number_ios=400 --bsrange=512-64k --rw=randwrite --direct=1 --randrepeat=0 \
            --ioengine=libaio --iodepth=4 --thinktime=60000 --thinktime_blocks=8 > /run/fio.log || exit 1
    done
} &
RAW_PID=$!
for turn in 1 2 3; do
    written "$VOLUME_NAME"
    witnessed_mark "raw$turn"
done
: > /run/enough
wait $RAW_PID || fail "fio could not write"
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
        witnessed_mark "$fs$turn"
    done
    end_load
    umount /mnt/volume
done

step "stop"
stop_protect
same $VOLUME "$(disk target)"
for fs in ext4 xfs; do
    for turn in 1 2 3; do
        expect_sound "$fs$turn" $fs
    done
done
dmsetup status logged | grep -v logging_disabled || fail "the log was given up"
dmsetup remove volume
dmsetup remove logged
umount /journal
