#!/bin/sh
# A whole virtio disk under ext4, written all the time: the replica ends identical, and each mark gives back what was
# there.
# kernels: 6.1 6.12
# disks: source=96M target=96M journal=768M
# modules: ext4 loop
# tools: mkfs.ext4 e2fsck fio
# default: yes
# timeout: 1200
# compare: source target
. /lib.sh
SOURCE=$(disk source)
TARGET=$(disk target)

step "a file system that is in use already"
mount_journal
mkfs.ext4 -q "$SOURCE"
mkdir -p /mnt/source
mount -t ext4 "$SOURCE" /mnt/source
files /mnt/source/keep 6 128

step "protect it under load"
begin_load /mnt/source
start_protect "$SOURCE" "$TARGET" --mark-every never

step "mark one"
files /mnt/source/keep/one 6 64
sync
sums /mnt/source/keep > /run/one.sums
mark one

step "mark two"
files /mnt/source/keep/two 6 64
rm -r /mnt/source/keep/one
sync
sums /mnt/source/keep > /run/two.sums
mark two

step "after the marks"
files /mnt/source/keep/three 3 64
rm /mnt/source/keep/file1
fio --name=verify --filename=/mnt/source/verified --size=4M --bs=4k --rw=randwrite --direct=1 --verify=crc32c \
    > /run/fio.log
end_load
umount /mnt/source

step "stop, compare"
stop_protect
same "$SOURCE" "$TARGET"
e2fsck -fn "$TARGET" > /run/fsck.log 2>&1 || fail "e2fsck finds the replica damaged"

step "replay mark one"
expect_point one /run/one.sums keep/two
step "replay mark two"
expect_point two /run/two.sums keep/three
