#!/bin/sh
# A loop device over a file, the replica a file too: neither journal nor replica is a disk of its own.
# kernels: 6.1 6.12
# disks: backing=128M journal=768M
# modules: ext4 loop
# tools: mkfs.ext4 e2fsck fio
# default: no
# timeout: 1200
. /lib.sh
VOLUME=/dev/loop0

step "a loop device"
mount_journal
mkfs.ext4 -q "$(disk backing)"
mkdir -p /mnt/backing /mnt/volume
mount -t ext4 "$(disk backing)" /mnt/backing
truncate -s 64M /mnt/backing/volume.img
wait_for 10 $VOLUME test -b $VOLUME
losetup $VOLUME /mnt/backing/volume.img
mkfs.ext4 -q $VOLUME
mount -t ext4 $VOLUME /mnt/volume

step "protect it under load"
begin_load /mnt/volume
start_protect $VOLUME /journal/replica.img --mark-every never
files /mnt/volume/keep 8 256
sync
sums /mnt/volume/keep > /run/one.sums
mark one
files /mnt/volume/later 4 256
rm /mnt/volume/keep/file2
fstrim /mnt/volume
end_load
umount /mnt/volume

step "stop, compare"
stop_protect
same $VOLUME /journal/replica.img
cmp /mnt/backing/volume.img /journal/replica.img || fail "the backing file differs from the replica"
expect_point one /run/one.sums later
