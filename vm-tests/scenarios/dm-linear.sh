#!/bin/sh
# A device-mapper volume over two disks. Writes over their border are split below it, and the completion of such a bio
# tells only its last piece; the submission tells all.
# kernels: 6.1 6.12
# disks: low=64M high=64M target=102400000 journal=640M
# modules: ext4 dm-mod
# tools: mkfs.ext4 fio dmsetup
# default: 6.1
# timeout: 1200
# compare: low@0+51200000 target
# compare: high@1M+51200000 target@51200000
. /lib.sh
TARGET=$(disk target)
VOLUME=/dev/mapper/volume

step "one volume of two disks"
mount_journal
{
    echo "0 100000 linear $(disk low) 0"
    echo "100000 100000 linear $(disk high) 2048"
} | dmsetup create volume
wait_for 10 "the mapped device" test -b $VOLUME
start_protect $VOLUME "$TARGET" --mark-every never

step "large writes over the border"
# The border is at byte 51200000, within the 13th block of 4 MiB.
for round in 1 2 3 4; do
    dd if=/dev/urandom of=$VOLUME bs=4M count=2 seek=11 oflag=direct 2> /dev/null
    fio --name=over --filename=$VOLUME --offset=49M --size=8M --bs=4M --rw=randwrite --direct=1 --ioengine=libaio \
        --iodepth=4 > /run/fio.log
done
mark "border"

step "a file system on it"
mkfs.ext4 -q $VOLUME
mkdir -p /mnt/volume
mount -t ext4 $VOLUME /mnt/volume
begin_load /mnt/volume
files /mnt/volume/some 10 1024
mark "load"
end_load
umount /mnt/volume

step "stop, compare"
stop_protect
same $VOLUME "$TARGET"
