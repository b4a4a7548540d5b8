#!/bin/sh
# The power fails again and again, and the disks lose what they were not told to flush: while protect starts,
# copies, captures, compares after a restart, and applies a mark. Each fourth boot stops in order: then the replica must be the
# source, both file systems sound, and every mark that was acknowledged still there. ext4 on 6.1, xfs on 6.12.
# kernels: 6.1 6.12
# disks: source=64M target=64M journal=2G notes=1M
# modules: ext4 xfs loop
# tools: mkfs.ext4 mkfs.xfs fio
# default: 6.12
# timeout: 1200
# cuts: 3 30
# compare: source target
# fsck: source target
. /lib.sh
# Full length takes long, on a machine that may have other work.
LIVE_DEADLINE=400
SOURCE=$(disk source)
TARGET=$(disk target)
NOTES=$(disk notes)
case $(uname -r) in
    6.1.*) FS=ext4 OPTIONS=rw ;;
    *) FS=xfs OPTIONS=nouuid ;;
esac

# What is to be known after the next cut, on a disk of its own: the label of the last acknowledged mark and the sums of what it
# held.
note() { { echo "$1" && cat "$2"; } | dd of="$NOTES" bs=64k count=1 conv=sync,fsync 2> /dev/null; }
noted() { dd if="$NOTES" bs=64k count=1 2> /dev/null | tr -d '\0'; }

# A mark that must survive: what is in keep/ was synced before it.
marked() {
    files /mnt/source/keep 4 32
    sync
    sums /mnt/source/keep > /run/keep.sums
    mark "$1"
    note "$1" /run/keep.sums
}

replica_is_at() { afterwrite status --json | tr -d '\n ' | grep -q "\"consistent\":true,\"mark\":$1[,}]"; }

# reached PHASE MS: says it on the console, and asks for the cut if it is the one that was chosen.
reached() {
    phase "$1"
    [ "$1" != $CUT ] || cut_within "$2"
}
watch_protect() {
    while read -r line; do
        echo "protect: $line"
        case $line in
            *"copying the volume"*) reached copy 5000 ;;
            *"comparing the volume"*) reached resync 3000 ;;
            *": Live, "*) reached live 6000 ;;
        esac
    done
}

case $((BOOT % 12)) in
    1) CUT=start ;;
    5 | 9) CUT=live ;;
    2 | 6 | 10) CUT=resync ;;
    3 | 7 | 11) CUT=apply ;;
    *) CUT=never ;;
esac
[ "$BOOT" -ne 1 ] || CUT=copy
step "boot $BOOT, cut: $CUT, $FS"
mkdir -p /journal /mnt/source
if [ "$BOOT" -eq 1 ]; then
    mount_journal
    # These have mkfs.xfs make a file system this small.
    TEST_DEV=. TEST_DIR=. QA_CHECK_FS=1 mkfs.$FS -q "$SOURCE"
else
    mount -t ext4 "$(disk journal)" /journal || fail "the journal's disk does not mount"
fi
mount -t $FS "$SOURCE" /mnt/source || fail "the source does not mount"
LAST=$(noted | head -n 1)
if [ -n "$LAST" ]; then
    afterwrite points $JOURNAL | grep -q " $LAST\$" || fail "mark $LAST was acknowledged and is gone"
fi
begin_load /mnt/source

step "protect"
mkfifo /run/said
watch_protect < /run/said &
reached start 5000
afterwrite protect "$SOURCE" --journal $JOURNAL --target "$TARGET" --mark-every 1s > /run/said 2>&1 &
PROTECT_PID=$!
wait_for $LIVE_DEADLINE "protect to be live" is_live

while [ $CUT != never ]; do
    dd if=/dev/urandom of=/mnt/source/bulk bs=1M count=12 conv=fsync 2> /dev/null
    marked "boot$BOOT"
    if [ $CUT = apply ]; then
        reached apply 1500
        ID=$(afterwrite points $JOURNAL | grep " boot$BOOT\$" | tail -n 1 | awk '{ print $1 }')
        wait_for 60 "the mark to be applied" replica_is_at "$ID"
        phase live
    fi
done

step "a mark, and the end"
marked "boot$BOOT"
end_load
unmount /mnt/source
stop_protect
same "$SOURCE" "$TARGET"
afterwrite replay $JOURNAL --to "mark:boot$BOOT" --target /journal/replayed.img
mkdir -p /mnt/replayed
mount -t $FS -o loop,$OPTIONS /journal/replayed.img /mnt/replayed || fail "the point does not mount"
expect_sums /mnt/replayed/keep /run/keep.sums
umount /mnt/replayed
rm /journal/replayed.img
umount /journal
