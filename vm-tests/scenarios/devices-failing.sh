#!/bin/sh
# Devices that fail: writes that end in an error without having been done (dm-flakey, bad blocks of null_blk), with an
# error although they were done, and those that time out (SCSI); a device that holds writes back (dm suspend). What the
# journal has afterwards is what the device holds.
# kernels: 6.1 6.12
# disks: disk=33M journal=1G
# modules: ext4 loop dm-mod dm-flakey null_blk scsi_debug sd_mod
# parameters: null_blk.nr_devices=0 scsi_debug.dev_size_mb=32
# tools: mkfs.ext4 e2fsck fio blkdiscard dmsetup
# default: no
# timeout: 1200
. /devices.sh

# writes DEVICE: some of them fail, which is what is wanted; says how many.
writes() {
    failed=0
    for block in $(seq 0 40 1000); do
        dd if=/dev/urandom of="$1" bs=16k count=1 seek="$block" oflag=direct 2> /dev/null || failed=$((failed + 1))
    done
    echo "$failed of 26 writes failed"
}

failing_writes() {
    writes "$1"
    [ $failed -gt 0 ] || fail "no write of $1 failed"
}

# swap_table TABLE: of the flakey device.
swap_table() {
    dmsetup load flakey --table "$1"
    dmsetup suspend --noflush flakey
    dmsetup resume flakey
}

# expect_failed_point DEVICE: the mark, once the device can be read.
expect_failed_point() {
    afterwrite replay "$JOURNAL" --to mark:failed --target /journal/replayed.img || fail "replay failed"
    same "$1" /journal/replayed.img
    rm /journal/replayed.img
}

unreadable() { [ "$(status_field unreadable_bytes)" -gt 0 ]; }
readable() { [ "$(status_field unreadable_bytes)" -eq 0 ]; }

mount_journal

FLAKEY="0 65536 flakey $(disk disk) 2048"
dmsetup create flakey --table "$FLAKEY 60 0"
begin_walk flakey /dev/mapper/flakey
swap_table "$FLAKEY 0 60 1 error_writes"
failing_writes /dev/mapper/flakey
# It can be read all the time, and nothing else writes: the mark has to tell what the device holds.
mark failed
[ "$(status_field failed_writes)" -ge $failed ] || fail "$failed writes failed, status counts $(status_field failed_writes)"
swap_table "$FLAKEY 60 0"
expect_failed_point /dev/mapper/flakey

step "a suspended dm device"
write_all_ways /dev/mapper/flakey
dmsetup suspend flakey
dd if=/dev/urandom of=/dev/mapper/flakey bs=1M count=4 seek=7 oflag=direct 2> /dev/null &
HELD_PID=$!
sleep 1
kill -0 $HELD_PID || fail "a suspended device took a write"
dmsetup resume flakey
wait $HELD_PID
end_walk flakey /dev/mapper/flakey

# The blocks can neither be written nor read: until they can, there is no restorable mark.
null_device nullb0 queue_mode=2 blocksize=512
begin_walk badblocks /dev/nullb0
for range in 2560-2600 3840-3850 12810-13000; do echo +$range > /sys/kernel/config/nullb/nullb0/badblocks; done
failing_writes /dev/nullb0
wait_for 30 "what can't be read" unreadable
afterwrite mark --label impossible && fail "a mark was made though not all could be read"
for range in 2560-2600 3840-3850 12810-13000; do echo -$range > /sys/kernel/config/nullb/nullb0/badblocks; done
wait_for 30 "all to be readable" readable
mark failed
expect_failed_point /dev/nullb0
end_walk badblocks /dev/nullb0

# Every third command ends with an error, reads too, though the write was done.
SCSI_DEBUG=/sys/bus/pseudo/drivers/scsi_debug
begin_walk scsi_error /dev/sda
echo 0x20 > $SCSI_DEBUG/opts
echo 3 > $SCSI_DEBUG/every_nth
failing_writes /dev/sda
echo 0 > $SCSI_DEBUG/every_nth
echo 0 > $SCSI_DEBUG/opts
wait_for 30 "all to be readable" readable
mark failed
expect_failed_point /dev/sda
end_walk scsi_error /dev/sda

# Commands that are never answered: the kernel gives them up after a second, and tries again.
begin_walk scsi_timeout /dev/sda
echo 1 > /sys/block/sda/device/timeout
echo 4 > $SCSI_DEBUG/opts
echo 11 > $SCSI_DEBUG/every_nth
writes /dev/sda
echo 0 > $SCSI_DEBUG/every_nth
echo 0 > $SCSI_DEBUG/opts
dmesg | grep -q "abort" || dmesg | tail -n 20
mark timeouts
end_walk scsi_timeout /dev/sda
