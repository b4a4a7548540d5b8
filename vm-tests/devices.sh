# What the scenarios for kinds of devices share, on top of lib.sh.
# shellcheck shell=sh
. /lib.sh

# walk KIND DEVICE [OPTION...]: protects the device, writes it in all ways there are, under load also for a mark, stops
# and compares.
walk() {
    begin_walk "$@"
    write_all_ways "$2"
    end_walk "$1" "$2"
}

# begin_walk KIND DEVICE [OPTION...]: protects it, with a journal of its own.
begin_walk() {
    walked_kind=$1
    walked_device=$2
    shift 2
    step "$walked_kind"
    wait_for 10 "$walked_device" test -b "$walked_device"
    JOURNAL=/journal/$walked_kind
    dd if=/dev/urandom of="$walked_device" bs=1M count=4 conv=fsync 2> /dev/null
    start_protect "$walked_device" "$(target_of "$walked_kind")" --mark-every never "$@"
}

# target_of KIND: the disk KIND_target if there is one, which the host compares too.
target_of() { if grep -q "^$1_target=" /disks; then disk "$1_target"; else echo "/journal/$1.img"; fi; }

# end_walk KIND DEVICE: all is in the journal and the replica, byte for byte.
end_walk() {
    wait_for 30 "the counters of $1 to add up" counters_add_up
    COMPLETIONS=$(status_field completions_seen)
    stop_protect
    same "$2" "$(target_of "$1")"
    rm -rf "$JOURNAL" "/journal/$1.img"
    echo "$1: seen $SEEN, emitted $EMITTED, marked $MARKED, completions $COMPLETIONS"
}

counters_add_up() {
    SEEN=$(status_field seen) EMITTED=$(status_field emitted) MARKED=$(status_field marked)
    [ "$SEEN" -gt 0 ] && [ "$SEEN" -eq $((EMITTED + MARKED)) ]
}

# write_all_ways DEVICE: many writes at a time with flushes among them, and FUA writes, while a mark is made; then through
# the page cache (large, merged requests), discards, and write-zeroes.
write_all_ways() {
    fio --filename="$1" --direct=1 --rw=randwrite --time_based --runtime=60 --thinktime=2000 \
        --name=load --ioengine=libaio --iodepth=8 --bsrange=4k-64k --fsync=8 \
        --name=fua --ioengine=psync --sync=dsync --bs=4k > /run/fio.log 2>&1 &
    LOAD_PID=$!
    wait_for 30 "the load" device_is_written
    mark load
    kill -INT $LOAD_PID
    wait $LOAD_PID || true
    dd if=/dev/urandom of="$1" bs=1M count=4 seek=9 conv=fsync 2> /dev/null
    # Pieces that touch, pieces that do not, and large ones, over what was written a moment ago.
    for piece in 0 1 3; do
        discard "$1" $((9 * 1048576 + piece * 131072)) 131072
        zeroes "$1" $((11 * 1048576 + piece * 131072)) 131072
    done
    discard "$1" $((20 * 1048576)) $((6 * 1048576))
    zeroes "$1" $((4 * 1048576)) $((3 * 1048576))
    dd if=/dev/urandom of="$1" bs=4k count=10 seek=2500 oflag=direct 2> /dev/null
}

# discard DEVICE OFFSET BYTES, if it can. Programs that busybox's shell would answer for itself are named by their path.
discard() {
    [ "$(attribute "$1" queue/discard_max_bytes)" = 0 ] || /bin/blkdiscard -o "$2" -l "$3" "$1"
}

zeroes() { /bin/blkdiscard -z -o "$2" -l "$3" "$1"; }

# attribute DEVICE NAME: of a disk, or of the disk that a partition is on.
attribute() { cat "$(disk_in_sysfs "$1")/$2"; }

disk_in_sysfs() {
    numbers=$(stat -c '$((0x%t)):$((0x%T))' "$(readlink -f "$1")")
    block=/sys/dev/block/$(eval "echo $numbers")
    if [ -e "$block/partition" ]; then echo "$block/.."; else echo "$block"; fi
}

device_is_written() { [ "$(status_field seen)" -gt 40 ]; }

# begin_files DEVICE [MOUNT OPTIONS], end_files: within a walk, an ext4 under load; at the end a mark while it is mounted, a trim, and
# the mark replayed and checked.
begin_files() {
    mkfs.ext4 -qF "$1"
    mkdir -p /mnt/walked
    mount -t ext4 -o "${2:-rw}" "$1" /mnt/walked
    begin_load /mnt/walked
}

end_files() {
    files /mnt/walked/keep 6 64
    sync
    sums /mnt/walked/keep > /run/walked.sums
    mark files
    files /mnt/walked/later 6 64
    for number in 1 3 5; do rm "/mnt/walked/keep/file$number"; done
    sync
    fstrim /mnt/walked 2> /dev/null || true
    end_load
    umount /mnt/walked
    expect_point files /run/walked.sums later
}

# null_device NAME ATTRIBUTE=VALUE...: a null_blk that keeps what is written, /dev/NAME.
null_device() {
    grep -q ' /sys/kernel/config ' /proc/mounts || mount -t configfs configfs /sys/kernel/config
    null_dir=/sys/kernel/config/nullb/$1
    mkdir "$null_dir"
    shift
    for setting in memory_backed=1 size=32 "$@" power=1; do
        echo "${setting#*=}" > "$null_dir/${setting%%=*}"
    done
}

# refused DEVICE WORD...: protect does not start, and says why.
refused() {
    refused_device=$1
    shift
    status=0
    afterwrite protect "$refused_device" --journal /run/refused --target /run/refused.img > /run/refused.log 2>&1 \
        || status=$?
    cat /run/refused.log
    [ $status -eq 2 ] || fail "protect of $refused_device ended with $status instead of 2"
    for word in "$@"; do
        grep -q "$word" /run/refused.log || fail "the refusal of $refused_device does not say: $word"
    done
    [ ! -e /run/refused.img ] || fail "a refused protection has made its target"
}
