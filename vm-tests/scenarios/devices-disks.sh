#!/bin/sh
# NVMe and SCSI disks with sectors of 512 and of 4096 bytes; NVMe merges discards that do not touch into one request;
# a partition with an odd number of sectors, and writes over its borders.
# kernels: 6.1 6.12
# disks: nvme_target=34603520 nvme_4096_target=33M scsi_target=33M scsi_4096_target=33M journal=1G
# nvme: nvme=48M nvme_4096=33M/4096
# scsi: scsi=33M scsi_4096=33M/4096
# modules: ext4 xfs loop virtio_scsi sd_mod
# cmdline: nvme_core.multipath=N
# tools: mkfs.ext4 mkfs.xfs fio blkdiscard sfdisk
# default: no
# timeout: 1200
# compare: nvme_4096 nvme_4096_target
# compare: scsi scsi_target
# compare: scsi_4096 scsi_4096_target
# compare: nvme@5120+34603520 nvme_target
. /devices.sh

# Of requests, and of those that were merged into another before they became one.
discards_were_merged() {
    DISCARDS=$(attribute "$DISK" stat | awk '{ print $12 }')
    MERGES=$(attribute "$DISK" stat | awk '{ print $13 }')
    [ "$MERGES" -gt 0 ]
}

mount_journal

for kind in nvme_4096 scsi scsi_4096; do
    walk $kind "$(disk $kind)"
done

# Between two others; 67585 sectors from the tenth on.
DISK=$(disk nvme)
printf 'label: dos\nstart=2, size=8\nstart=10, size=67585\nstart=67595, size=8192\n' | sfdisk -q "$DISK"
VOLUME=${DISK}p2
begin_walk nvme "$VOLUME"
write_all_ways "$VOLUME"

step "writes over the borders of the partition"
for round in 1 2 3; do
    dd if=/dev/urandom of="$DISK" bs=4k count=16 oflag=direct 2> /dev/null
    # The tail of one and the head of the next, at once and through the page cache: these get merged.
    dd if=/dev/urandom of="$VOLUME" bs=512 count=640 seek=$((67585 - 640)) conv=fsync 2> /dev/null &
    TAIL_PID=$!
    dd if=/dev/urandom of="${DISK}p3" bs=512 count=640 conv=fsync 2> /dev/null
    wait $TAIL_PID
    dd if=/dev/urandom of="$DISK" bs=64k count=2 seek=527 oflag=direct 2> /dev/null
done
/bin/blkdiscard -f -o $((67000 * 512)) -l $((1024 * 512)) "$DISK"

step "discards that are merged"
# XFS hands all that a transaction freed to the device at once.
mkfs.xfs -q -f --unsupported "$VOLUME"
mkdir -p /mnt/walked
mount -t xfs -o discard "$VOLUME" /mnt/walked
for number in $(seq 100); do
    dd if=/dev/urandom of=/mnt/walked/$number bs=16k count=1 2> /dev/null
done
sync
rm /mnt/walked/*[13579]
sync
wait_for 60 "merged discards" discards_were_merged
mark discards
umount /mnt/walked
end_walk nvme "$VOLUME"
echo "$DISCARDS requests to discard, $MERGES of them merged"
