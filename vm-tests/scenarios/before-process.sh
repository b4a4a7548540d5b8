#!/bin/sh
# A process removes a tree amid other writes: `replay --to before-process:` has everything that was
# there before, and nothing of it. On each rung of the file probes, with payload and with extents.
# kernels: 6.1 6.12
# disks: source=96M target=96M journal=1G
# modules: ext4 loop
# tools: mkfs.ext4 e2fsck fio
# default: no
# timeout: 1800
. /lib.sh
LIVE_DEADLINE=400
SOURCE=$(disk source)
TARGET=$(disk target)

is_watched() { [ "$(status_field file_systems)" = 1 ]; }

# try RUNG [OPTION...]: of which the rung is expected.
try() {
    want=$1
    shift
    rm -rf $JOURNAL
    dd if=/dev/zero of="$TARGET" bs=1M 2> /dev/null || true
    mkfs.ext4 -q -F "$SOURCE"
    mkdir -p /mnt/source
    mount -t ext4 "$SOURCE" /mnt/source
    files /mnt/source/keep 120 4
    sync
    sums /mnt/source/keep > /run/keep.sums
    start_protect "$SOURCE" "$TARGET" --mark-every never --force "$@"
    wait_for 300 "changes of files to be watched" is_watched
    afterwrite status --json | grep -q "\"rung\": *\"$want\"" || fail "$(afterwrite status --json)"
    mark before
    begin_load /mnt/source

    # A name of its own: the load removes files, too.
    cp /bin/busybox /run/busybox_all
    /run/busybox_all rm -rf /mnt/source/keep
    dd if=/dev/zero of=/mnt/source/after bs=4k count=1 conv=fsync 2> /dev/null
    end_load
    mark after
    unmount /mnt/source
    stop_protect
    afterwrite log $JOURNAL --process busybox_all | head -n 3
    afterwrite replay $JOURNAL --to before-process:busybox_all --target /journal/replayed.img || fail "replay failed"
    mkdir -p /mnt/replayed
    mount -t ext4 -o loop /journal/replayed.img /mnt/replayed || fail "it does not mount"
    expect_sums /mnt/replayed/keep /run/keep.sums
    [ ! -e /mnt/replayed/after ] || fail "it holds what was written later"
    umount /mnt/replayed
    e2fsck -fn /journal/replayed.img > /run/fsck.log 2>&1 || fail "e2fsck finds it damaged"
    rm /journal/replayed.img
}

mount_journal
step "payload, the best rung"
try fentry --capture payload
step "extents, kprobes"
try kprobe --origin-rung kprobe
step "payload, system calls"
try syscall --capture payload --origin-rung syscall
