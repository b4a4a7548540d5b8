#!/bin/sh
# The collector is killed under load again and again, also while it holds the file system frozen for a mark. Started
# again it catches up, the file system is never left frozen, and the replica ends identical.
# kernels: 6.1 6.12
# disks: source=96M target=96M journal=1G
# modules: ext4 loop
# tools: mkfs.ext4 e2fsck fio
# default: 6.12
# timeout: 600
# compare: source target
. /lib.sh
SOURCE=$(disk source)
TARGET=$(disk target)

# A write to a frozen file system hangs for good: so try one aside and look whether it came back.
expect_writable() {
    rm -f /run/written
    { dd if=/dev/zero of=/mnt/source/alive bs=4k count=1 conv=fsync 2> /dev/null && : > /run/written; } &
    wait_for 60 "a write to come back: the file system is frozen" test -e /run/written
}

step "protect a file system under load"
mount_journal
mkfs.ext4 -q "$SOURCE"
mkdir -p /mnt/source
mount -t ext4 "$SOURCE" /mnt/source
begin_load /mnt/source

step "killed during the first copy"
launch_protect "$SOURCE" "$TARGET" --mark-every never
wait_for 60 "the journal to be begun" test -e $JOURNAL/volume.toml
sleep 0.5
kill_protect

step "started again"
start_protect "$SOURCE" "$TARGET" --mark-every never
mark first

for round in 1 2 3; do
    step "killed while capturing, round $round"
    files "/mnt/source/captured$round" 4 256
    kill_protect
    files "/mnt/source/unseen$round" 4 256
    rm -r "/mnt/source/captured$round"
    start_protect "$SOURCE" "$TARGET" --mark-every never
done

for delay in 0.02 0.05 0.1 0.2 0.4; do
    step "killed $delay s into a mark"
    afterwrite mark --label "interrupted$delay" > /run/mark.log 2>&1 &
    MARK_PID=$!
    sleep $delay
    kill_protect
    wait $MARK_PID || true
    launch_protect "$SOURCE" "$TARGET" --mark-every never
    expect_writable
    wait_for $LIVE_DEADLINE "protect to be live" is_live
done

step "a mark after all that"
files /mnt/source/keep 6 64
sync
sums /mnt/source/keep > /run/last.sums
mark last
files /mnt/source/later 3 64
end_load
umount /mnt/source

step "stop, compare"
stop_protect
same "$SOURCE" "$TARGET"
expect_point last /run/last.sums later
