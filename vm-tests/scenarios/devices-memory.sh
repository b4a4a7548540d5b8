#!/bin/sh
# Devices that keep their bytes in memory, one after the other: brd and zram (bios), null_blk by requests and by bios,
# loop, SCSI; with sectors of 512 and of 4096 bytes.
# kernels: 6.1 6.12
# disks: journal=1G
# modules: ext4 loop brd zram lzo lzo-rle null_blk scsi_debug sd_mod
# parameters: brd.rd_nr=1 brd.rd_size=32768 null_blk.nr_devices=0 scsi_debug.dev_size_mb=32
# parameters: scsi_debug.lbpu=1 scsi_debug.lbpws=1
# tools: mkfs.ext4 e2fsck fio blkdiscard losetup
# default: no
# timeout: 1200
. /devices.sh

mount_journal

walk brd /dev/ram0

echo 32M > /sys/block/zram0/disksize
walk zram /dev/zram0

null_device nullb0 queue_mode=2 blocksize=512 discard=1
walk null_blk /dev/nullb0
null_device nullb1 queue_mode=2 blocksize=4096 discard=1 cache_size=4
walk null_blk_4096 /dev/nullb1
null_device nullb2 queue_mode=0 blocksize=512
walk null_blk_bio /dev/nullb2

truncate -s 32M /tmp/loop.img
losetup /dev/loop0 /tmp/loop.img
walk loop /dev/loop0
losetup -d /dev/loop0
/bin/losetup -b 4096 --direct-io=off /dev/loop1 /tmp/loop.img
walk loop_4096 /dev/loop1
losetup -d /dev/loop1
rm /tmp/loop.img

walk scsi_debug /dev/sda
