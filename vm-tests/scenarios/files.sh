#!/bin/sh
# Files of ext4 and xfs that were removed, or written over, come back out of the journal as they were at a mark: listed, one by one,
# and as a directory. Those of ext4 are read from the journal itself, those of xfs from a scratch mount.
# kernels: 6.1 6.12
# disks: ext4=64M xfs=128M target=128M journal=512M
# modules: ext4 xfs loop
# tools: mkfs.ext4 mkfs.xfs
# default: no
# timeout: 1800
. /lib.sh
# All of an empty journal's first copy, on a host that is busy besides.
LIVE_DEADLINE=400
mount_journal
for fs in ext4 xfs; do
    # These have mkfs.xfs make a file system this small.
    export TEST_DEV=. TEST_DIR=. QA_CHECK_FS=1
    mount_new $fs
    JOURNAL=/journal/$fs
    step "protect $fs"
    start_protect "$(disk $fs)" "$(disk target)" --force --mark-every never

    step "files, a mark, and none of them"
    files /mnt/$fs/keep 6 64
    files /mnt/$fs/keep/below 3 700
    truncate -s 5M /mnt/$fs/keep/file1
    sums /mnt/$fs/keep > /run/keep.sums
    mark before
    rm -r /mnt/$fs/keep/below
    files /mnt/$fs/keep 3 100
    rm /mnt/$fs/keep/file6
    mark after
    stop_protect
    umount /mnt/$fs

    step "they come back"
    afterwrite files $JOURNAL / --to mark:before --recursive --scratch /journal > /run/files.before
    afterwrite files $JOURNAL / --to mark:after --recursive --scratch /journal > /run/files.after
    grep -q /keep/below/file3 /run/files.before || fail "the mark has no /keep/below/file3"
    ! grep -q /keep/below /run/files.after || fail "the later mark has what was removed before"
    afterwrite restore-file $JOURNAL /keep --to mark:before --recursive --output /journal/restored --scratch /journal
    expect_sums /journal/restored /run/keep.sums
    afterwrite restore-file $JOURNAL /keep/file6 --to mark:before --output /journal/file6 --scratch /journal
    cmp /journal/file6 /journal/restored/file6 || fail "the one file is another"
    rm -r /journal/restored /journal/file6
done
