#!/bin/sh
# Kinds of devices whose writes can't all be seen are refused, with the reason.
# kernels: 6.1 6.12
# disks: disk=33M
# nvme: nvme=33M
# modules: null_blk nd_e820 nd_pmem scsi_debug sr_mod dm-mod
# parameters: null_blk.nr_devices=0 scsi_debug.ptype=5
# cmdline: memmap=64M!512M
# tools: dmsetup
# default: no
# timeout: 600
. /devices.sh

step "zoned"
null_device nullb0 zoned=1 zone_size=4
refused /dev/nullb0 zoned

step "DAX, also below a mapped device"
wait_for 10 /dev/pmem0 test -b /dev/pmem0
refused /dev/pmem0 DAX
dmsetup create linear --table "0 65536 linear /dev/pmem0 0"
refused /dev/mapper/linear DAX

step "NVMe with several paths"
refused "$(disk nvme)" nvme_core.multipath=N

step "CD-ROM"
wait_for 10 /dev/sr0 test -b /dev/sr0
refused /dev/sr0 exchanged

step "writes that are not counted"
DISK=$(disk disk)
echo 0 > "$(disk_in_sysfs "$DISK")/queue/iostats"
refused "$DISK" queue/iostats
echo 1 > "$(disk_in_sysfs "$DISK")/queue/iostats"
dmsetup create counted --table "0 65536 linear $DISK 0"
echo 0 > "$(disk_in_sysfs /dev/mapper/counted)/queue/iostats"
case $(uname -r) in
    # Counts bios in any case.
    6.1.*) afterwrite doctor /dev/mapper/counted | grep refused && fail "what is counted is refused" || true ;;
    *) refused /dev/mapper/counted queue/iostats ;;
esac
