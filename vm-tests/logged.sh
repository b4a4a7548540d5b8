# shellcheck shell=sh
# A volume on top of the kernel's own log of its writes (dm-log-writes). The log holds a write once it was flushed, and then in
# the order of completion; but those with FUA at once, ahead of others that were completed before. So nothing that writes
# may flush: the volume is a device on top that says it has no cache, where FUA and flushes of the file systems end; what
# they order, it completes in that order. Flushes are sent past it, around each mark.
# Needs the disks source, target, log and journal.
. /lib.sh
VOLUME=/dev/mapper/volume

# logged_volume ARGUMENTS: makes it, and protects it with these.
logged_volume() {
    step "a volume on top of a log of its writes"
    mount_journal
    sectors=$(blockdev --getsz "$(disk source)")
    dmsetup create logged --table "0 $sectors log-writes $(disk source) $(disk log)"
    wait_for 10 "the log's device" test -b /dev/mapper/logged
    dmsetup create volume --table "0 $sectors linear /dev/mapper/logged 0"
    wait_for 10 "the volume" test -b $VOLUME
    VOLUME_NAME=dm-$(dmsetup info -c --noheadings -o minor volume)
    echo "write through" > "/sys/block/$VOLUME_NAME/queue/write_cache"
    start_protect $VOLUME "$(disk target)" --mark-every never "$@"
}

flush() { dd if=/dev/null of=/dev/mapper/logged conv=fsync 2> /dev/null; }
# A mark between two notes in the log.
witnessed_mark() {
    flush
    dmsetup message logged 0 mark "before-$1"
    mark "$1"
    flush
    dmsetup message logged 0 mark "after-$1"
}

# begin_raw DEPTH: writes with so many under way at once, which pause now and then, until end_raw.
begin_raw() {
    rm -f /run/enough
    {
        while [ ! -e /run/enough ]; do
            fio --name=raw --filename=$VOLUME --number_ios=400 --bsrange=512-64k --rw=randwrite --direct=1 \
                --randrepeat=0 --ioengine=libaio --iodepth="$1" --thinktime=60000 --thinktime_blocks=8 \
                > /run/fio.log || exit 1
        done
    } &
    RAW_PID=$!
}
end_raw() {
    : > /run/enough
    wait $RAW_PID || fail "fio could not write"
}

# Discards, then ext4 and xfs under load, with marks; the end, and what is to be found in the replica.
discards_and_file_systems() {
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
}
