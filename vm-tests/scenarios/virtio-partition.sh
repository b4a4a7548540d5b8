#!/bin/sh
# The second partition is protected, both are written, also across their border: the kernel merges such writes into one
# request, of which only the part in the volume may be taken.
# kernels: 6.1 6.12
# disks: source=100M target=64M journal=640M
# modules: ext4
# tools: mkfs.ext4 fio sfdisk
# default: no
# timeout: 1200
# compare: source@34603008+67108864 target
. /lib.sh
DISK=$(disk source)
TARGET=$(disk target)

step "two partitions without a gap"
mount_journal
printf 'label: gpt\nstart=2048, size=65536\nstart=67584, size=131072\n' | sfdisk -q "$DISK"
wait_for 10 "the partitions" test -b "${DISK}2"
start_protect "${DISK}2" "$TARGET" --mark-every never

step "writes over the border"
for round in 1 2 3 4 5; do
    # One write through the whole disk that belongs half to the volume: blocks of 32 KiB, the border is at the 1056th.
    dd if=/dev/urandom of="$DISK" bs=32k count=2 seek=1055 oflag=direct 2> /dev/null
    fio --name=over --filename="$DISK" --offset=$((67584 * 512 - 65536)) --size=128k --bs=128k --rw=write --direct=1 \
        > /run/fio.log
    # The tail of the first and the head of the second, at once and through the page cache: these get merged.
    dd if=/dev/urandom of="${DISK}1" bs=4k count=64 seek=$((65536 / 8 - 64)) conv=fsync 2> /dev/null &
    TAIL_PID=$!
    dd if=/dev/urandom of="${DISK}2" bs=4k count=64 conv=fsync 2> /dev/null
    wait "$TAIL_PID"
    dd if=/dev/urandom of="${DISK}1" bs=4k count=8 seek=$((65536 / 8 - 8)) oflag=direct 2> /dev/null
    dd if=/dev/urandom of="${DISK}2" bs=4k count=8 seek=$((131072 / 8 - 8)) oflag=direct 2> /dev/null
done
mark "border"

step "file systems on both"
mkfs.ext4 -q "${DISK}1"
mkfs.ext4 -q "${DISK}2"
mkdir -p /mnt/first /mnt/second
mount -t ext4 "${DISK}1" /mnt/first
mount -t ext4 "${DISK}2" /mnt/second
files /mnt/first/some 6 512 &
FIRST_PID=$!
begin_load /mnt/second
files /mnt/second/some 12 512
mark "load"
end_load
wait "$FIRST_PID"
umount /mnt/first
umount /mnt/second

step "stop, compare"
stop_protect
same "${DISK}2" "$TARGET"
