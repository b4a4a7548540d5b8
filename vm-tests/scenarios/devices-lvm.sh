#!/bin/sh
# LVM as its own tools set it up: a linear volume that gets a snapshot while it is written, the snapshot itself, a thin
# volume, and a snapshot of that.
# kernels: 6.1 6.12
# disks: pv=176M journal=1G
# modules: ext4 loop dm-mod dm-snapshot dm-thin-pool
# tools: mkfs.ext4 e2fsck fio blkdiscard lvm dmsetup
# default: no
# timeout: 1200
. /devices.sh

# There is neither udev to wait for nor a file of settings, and no thin_check.
lvm_run() {
    command=$1
    shift
    lvm "$command" --config 'activation { udev_sync=0 udev_rules=0 verify_udev_operations=1 } global { thin_check_executable="" }
        devices { obtain_device_list_from_udev=0 }' "$@" > /run/lvm.log 2>&1 || {
        cat /run/lvm.log
        fail "$command $* failed"
    }
}

step "a volume group"
mount_journal
lvm_run pvcreate "$(disk pv)"
lvm_run vgcreate vg "$(disk pv)"
lvm_run lvcreate -Wn -Zn -L 32M -n origin vg

begin_walk origin /dev/mapper/vg-origin
write_all_ways /dev/mapper/vg-origin
step "a snapshot of the protected volume, under load"
begin_files /dev/mapper/vg-origin
lvm_run lvcreate -s -L 40M -n snap vg/origin
end_files
end_walk origin /dev/mapper/vg-origin

step "a snapshot while its origin is written"
fio --name=origin --filename=/dev/mapper/vg-origin --direct=1 --rw=randwrite --bs=4k --time_based --runtime=300 \
    --size=4M --thinktime=5000 > /run/origin.log 2>&1 &
ORIGIN_PID=$!
walk snapshot /dev/mapper/vg-snap
kill -INT $ORIGIN_PID
wait $ORIGIN_PID || true
lvm_run lvremove -f vg/snap vg/origin

step "a thin pool"
lvm_run lvcreate -L 96M -T vg/pool
lvm_run lvcreate -V 32M -T vg/pool -n thin
begin_walk thin /dev/mapper/vg-thin
write_all_ways /dev/mapper/vg-thin
step "a snapshot of the protected thin volume, under load"
begin_files /dev/mapper/vg-thin
lvm_run lvcreate -s -n thin_snap vg/thin
lvm_run lvchange -ay -K vg/thin_snap
end_files
end_walk thin /dev/mapper/vg-thin
walk thin_snapshot /dev/mapper/vg-thin_snap
