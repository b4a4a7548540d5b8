#!/bin/sh
# More writes than a small ring can hold, ten times over: once while protect is stopped altogether, once while it runs. What
# found no room is in the bitmap, the counters add up, and nothing of it is missing in the replica.
# kernels: 6.1 6.12
# disks: source=64M target=64M journal=1G
# modules: ext4
# tools: mkfs.ext4 fio
# default: no
# timeout: 1200
# compare: source target
. /lib.sh
SOURCE=$(disk source)
TARGET=$(disk target)
# An event takes 56 bytes of the ring of 64 KiB.
RING_EVENTS=1170
WRITES=$((10 * RING_EVENTS))

disk_writes() { awk '{ print $5 + $12 }' "/sys/block/$(basename "$SOURCE")/stat"; }

# write_all DEPTH: each write is one request.
write_all() {
    fio --name=overload --filename="$SOURCE" --number_ios=$WRITES --bs=512 --rw=randwrite --direct=1 --norandommap \
        --randrepeat=0 --ioengine=libaio --iodepth="$1" > /run/fio.log || fail "fio could not write"
}

# At rest every write the probes saw went through the ring or is in the bitmap, and the probes saw every one.
adds_up() {
    SEEN=$(status_field seen) EMITTED=$(status_field emitted) MARKED=$(status_field marked)
    [ "$SEEN" -eq $((EMITTED + MARKED)) ] || return 1
    [ "$(status_field pending_bytes)" -eq 0 ]
}
expect_sum() {
    wait_for 120 "the counters to add up and all to be journaled" adds_up
    echo "$1: seen $SEEN = emitted $EMITTED + marked $MARKED; the disk counts $(($(disk_writes) - FIRST)) writes"
    [ "$SEEN" -eq $(($(disk_writes) - FIRST)) ] || fail "the disk counts $(($(disk_writes) - FIRST)) writes, the probes $SEEN"
}

step "protect with a ring of 64 KiB"
mount_journal
FIRST=$(disk_writes)
start_protect "$SOURCE" "$TARGET" --ring 64KiB --mark-every never

step "writes while protect is stopped"
kill -STOP "$PROTECT_PID"
write_all 16
kill -CONT "$PROTECT_PID"
expect_sum stopped
[ "$MARKED" -ge $((WRITES - 2 * RING_EVENTS)) ] || fail "only $MARKED of $WRITES writes found the ring full"
mark stopped

step "writes as fast as they go"
write_all 64
expect_sum running
mark running

step "stop, compare"
stop_protect
same "$SOURCE" "$TARGET"
