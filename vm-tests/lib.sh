# What scenarios share; each begins with `. /lib.sh`. Runs under busybox's sh.
# shellcheck shell=sh disable=SC2034
set -eu

JOURNAL=/journal/journal
PROTECT_PID=
PROTECT_LOG=/run/protect.log
LIVE_DEADLINE=120
STEP='the beginning'

# Says what comes; a failure of any command after it is reported as its.
step() {
    STEP=$*
    echo "== $(cut -d' ' -f1 /proc/uptime) $*"
}

# fail WHY...: ends the scenario.
fail() {
    echo "FAIL: $*"
    echo "$STEP: $*" > /run/verdict
    exit 1
}

# skip WHY...: ends the scenario; it is counted.
skip() {
    echo "$*" > /run/verdict
    exit 77
}

# next_boot STAGE: reboots a Debian; the scenario is run again, and `stage` says this word then.
next_boot() {
    echo "$1" > /var/lib/stage
    systemctl reboot
    exit 88
}

stage() { cat /var/lib/stage 2> /dev/null || echo first; }

ended() {
    status=$?
    if [ $status -ne 0 ] && [ $status -ne 77 ] && [ $status -ne 88 ]; then
        [ -e /run/verdict ] || echo "$STEP: a command failed (status $status)" > /run/verdict
        echo "---- kernel"
        dmesg | tail -n 15
        # protect's own words last: the host shows the end of all this.
        for log in /run/load.log /run/fio.log /run/fsck.log "$PROTECT_LOG"; do
            [ -e "$log" ] || continue
            echo "---- $log"
            tail -n 20 "$log"
        done
    fi
}
trap ended EXIT

uptime_seconds() { cut -d. -f1 /proc/uptime; }

# wait_for SECONDS WHAT COMMAND...: until the command succeeds, or fails the scenario.
wait_for() {
    deadline=$(($(uptime_seconds) + $1))
    what=$2
    shift 2
    until "$@"; do
        [ "$(uptime_seconds)" -lt "$deadline" ] || fail "waited in vain for $what"
        sleep 0.1
    done
}

# disk NAME: its device, as in the scenario's `# disks:`.
disk() {
    device=$(sed -n "s/^$1=//p" /disks)
    [ -n "$device" ] || fail "there is no disk $1"
    case $device in
        scsi:*) device=$(scsi_device "${device#scsi:}") ;;
        nvme:*) device=$(nvme_device "${device#nvme:}") ;;
    esac
    wait_for 30 "$device" test -b "$device" >&2
    echo "$device"
}

# scsi_device TARGET: of the virtual machine's adapter.
scsi_device() {
    blocks="/sys/bus/virtio/drivers/virtio_scsi/virtio*/host*/target*:0:$1/*:0:$1:0/block"
    # shellcheck disable=SC2086 # a pattern
    wait_for 30 "SCSI disk $1" test -d $blocks >&2
    # shellcheck disable=SC2086
    echo "/dev/$(ls $blocks)"
}

# nvme_device NAMESPACE
nvme_device() {
    wait_for 30 "NVMe namespace $1" grep -qx "$1" /sys/block/nvme[0-9]n*/nsid >&2
    grep -lx "$1" /sys/block/nvme[0-9]n*/nsid | sed 's,^/sys/block/\(.*\)/nsid,/dev/\1,'
}

# The journal lives on the disk `journal`, on ext4, as it would in earnest.
mount_journal() {
    mkdir -p /journal
    mkfs.ext4 -q "$(disk journal)"
    mount -t ext4 "$(disk journal)" /journal
}

# mount_new FS: on the disk of that name, at /mnt/FS.
mount_new() {
    step "mkfs.$1"
    "mkfs.$1" -q "$(disk "$1")"
    mkdir -p "/mnt/$1"
    mount -t "$1" "$(disk "$1")" "/mnt/$1"
}

# cut_within MS: has the host cut the power at a random instant of this time (xtask/src/cuts.rs).
cut_within() { echo "AFTERWRITE-CUT $1" > /dev/console; }

# phase WORD: what a cut is counted as from here on.
phase() { echo "AFTERWRITE-PHASE $1" > /dev/console; }

is_live() {
    kill -0 "$PROTECT_PID" 2>/dev/null || fail "protect ended: $(tail -n 1 "$PROTECT_LOG")"
    afterwrite status --json 2>/dev/null | grep -q '"state": *"live"'
}

# start_protect SOURCE TARGET [OPTION...]: in the background, and returns once the baseline is done and it is live.
start_protect() {
    launch_protect "$@"
    wait_for $LIVE_DEADLINE "protect to be live" is_live
}

# The same without waiting.
launch_protect() {
    launch_source=$1
    launch_target=$2
    shift 2
    echo "---- protect $launch_source $*" >> $PROTECT_LOG
    afterwrite protect "$launch_source" --journal $JOURNAL --target "$launch_target" "$@" >> $PROTECT_LOG 2>&1 &
    PROTECT_PID=$!
}

# status_field NAME: of the only volume, the first field of this name.
status_field() { afterwrite status --json | tr '{},' '\n' | sed -n "s/^ *\"$1\": *//p" | head -n 1; }

# Did this protect take over the probes of a killed one, so that nothing had to be read again?
adopted() { status_field probes | grep -Eq '"(adopted|replaced)"'; }

# Drain, last mark, exit 0.
stop_protect() {
    kill -INT "$PROTECT_PID"
    status=0
    wait "$PROTECT_PID" || status=$?
    [ $status -eq 0 ] || fail "protect ended with $status instead of 0"
    PROTECT_PID=
}

# unmount DIRECTORY: while a mark is made the helper holds the file system open.
unmount() { wait_for 30 "$1 to be unmounted" umount "$1"; }

# As a crash of the collector would.
kill_protect() {
    kill -KILL "$PROTECT_PID"
    wait "$PROTECT_PID" || true
    PROTECT_PID=
}

mark() { afterwrite mark --label "$1" || fail "mark $1 failed"; }

# files DIRECTORY COUNT KIB: fills it with files of random bytes, each synced.
files() {
    mkdir -p "$1"
    for number in $(seq "$2"); do
        dd if=/dev/urandom of="$1/file$number" bs=1k count="$3" conv=fsync 2>/dev/null
    done
}

# sums DIRECTORY: what is in it, to compare later.
sums() { (cd "$1" && find . -type f -print0 | sort -z | xargs -0 -r sha256sum); }

# expect_sums DIRECTORY SUMS
expect_sums() {
    sums "$1" > /run/sums.now
    cmp -s /run/sums.now "$2" || { diff "$2" /run/sums.now | head -n 20; fail "$1 is not what it was"; }
}

# begin_load DIRECTORY, end_load: synced random writes, and files that come and go, in the background.
begin_load() {
    mkdir -p "$1/load" "$1/churn"
    random_writes "$1/load" &
    LOAD_PID=$!
    churn "$1/churn" &
    CHURN_PID=$!
    wait_for 60 "the load to begin" test -e "$1/churn/3"
    wait_for 60 "the load to begin" test -e "$1/load/load.0.0"
}

# Many short runs: one long fio that is told to end while it still starts goes on for ever.
random_writes() {
    while [ ! -e /run/end_load ]; do
        fio --name=load --directory="$1" --size=6M --io_size=1M --bs=4k --rw=randwrite --randrepeat=0 --fsync=8 \
            --thinktime=500 > /run/load.log 2>&1 || return 1
    done
}

churn() {
    number=0
    while [ ! -e /run/end_load ]; do
        number=$((number + 1))
        dd if=/dev/urandom of="$1/$number" bs=4k count=$((number % 40 + 1)) 2> /dev/null
        mv "$1/$number" "$1/renamed"
        cp "$1/renamed" "$1/3"
        [ $((number % 5)) -ne 0 ] || truncate -s 1000 "$1/3"
        [ $((number % 7)) -ne 0 ] || sync
    done
}

end_load() {
    : > /run/end_load
    wait "$LOAD_PID" || fail "fio could not write under load"
    wait "$CHURN_PID" || fail "files could not be written under load"
    rm /run/end_load
}

# source_under_load: a file system on $SOURCE, mounted on /mnt/source, with a load on it; the journal's disk is mounted.
source_under_load() {
    mount_journal
    mkfs.ext4 -q "$SOURCE"
    mkdir -p /mnt/source
    mount -t ext4 "$SOURCE" /mnt/source
    begin_load /mnt/source
}

# last_mark_and_compare: a mark under load, the end of it and of protect, and replica and mark are as they must be.
last_mark_and_compare() {
    step "a mark after all that"
    files /mnt/source/keep 6 64
    sync
    sums /mnt/source/keep > /run/last.sums
    mark last
    files /mnt/source/later 3 64
    end_load
    unmount /mnt/source

    step "stop, compare"
    stop_protect
    same "$SOURCE" "$TARGET"
    afterwrite journal check $JOURNAL || fail "the journal is damaged"
    expect_point last /run/last.sums later
}

# expect_point LABEL SUMS ABSENT: the mark, replayed to a file and mounted, holds exactly these files in keep/, does
# not hold the path that was written after it, and is a sound file system.
expect_point() {
    afterwrite replay $JOURNAL --to "mark:$1" --target /journal/replayed.img || fail "replay of mark $1 failed"
    mkdir -p /mnt/replayed
    mount -t ext4 -o loop /journal/replayed.img /mnt/replayed || fail "mark $1 does not mount"
    expect_sums /mnt/replayed/keep "$2"
    [ ! -e "/mnt/replayed/$3" ] || fail "mark $1 holds $3, which was written later"
    umount /mnt/replayed
    e2fsck -fn /journal/replayed.img > /run/fsck.log 2>&1 || fail "e2fsck finds mark $1 damaged"
    rm /journal/replayed.img
}

# expect_sound LABEL FS: the mark's file system has no damage. That of a frozen xfs wants its log replayed first.
expect_sound() {
    afterwrite replay $JOURNAL --to "mark:$1" --target /journal/replayed.img || fail "replay of mark $1 failed"
    case $2 in
        ext4) e2fsck -fn /journal/replayed.img > /run/fsck.log 2>&1 || fail "e2fsck finds mark $1 damaged" ;;
        xfs)
            mkdir -p /mnt/replayed
            mount -t xfs -o loop,nouuid /journal/replayed.img /mnt/replayed || fail "mark $1 does not mount"
            umount /mnt/replayed
            xfs_repair -n /journal/replayed.img > /run/fsck.log 2>&1 || fail "xfs_repair finds mark $1 damaged"
            ;;
    esac
    rm /journal/replayed.img
}

# same A B: byte for byte, by afterwrite's own word and by cmp's.
same() {
    # Neither may answer from the page cache what the disk does not hold.
    echo 3 > /proc/sys/vm/drop_caches
    afterwrite verify "$1" "$2" || fail "verify finds $1 and $2 different"
    cmp -s "$1" "$2" || fail "verify says $1 and $2 are the same, cmp does not"
}
