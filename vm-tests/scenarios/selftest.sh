#!/bin/sh
# Tests the test machine itself: modules, tools, disks and the host's comparison. Needs nothing of Afterwrite.
# kernels: 6.1 6.12
# disks: source=48M copy=64M
# modules: ext4 loop dm-mod
# tools: mkfs.ext4 fio dmsetup
# default: no
# timeout: 600
# compare: source copy@1M
. /lib.sh

step "a file system on a virtual disk"
mkfs.ext4 -q "$(disk source)"
mkdir -p /mnt/source
mount "$(disk source)" /mnt/source
files /mnt/source/some 4 256
sums /mnt/source/some > /run/sums
fio --name=w --filename=/mnt/source/fio --size=4M --rw=randwrite --bs=4k --direct=1 --verify=crc32c > /run/fio.log
umount /mnt/source
mount "$(disk source)" /mnt/source
expect_sums /mnt/source/some /run/sums
umount /mnt/source

step "afterwrite starts"
afterwrite --version

step "device mapper and what the host will compare"
dmsetup create shifted --table "0 $((48 * 2048)) linear $(disk copy) 2048"
wait_for 10 "the mapped device" test -b /dev/mapper/shifted
dd if="$(disk source)" of=/dev/mapper/shifted bs=1M oflag=direct 2> /run/dd.log
