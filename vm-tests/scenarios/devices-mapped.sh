#!/bin/sh
# Devices made of others: dm-crypt; a disk that is written through dm-linear above it; md raid1, also while it loses a
# leg and gets it back; dm-delay, whose completions come late; dm-multipath, which takes requests, also while it
# loses a path.
# kernels: 6.1 6.12
# disks: one=34M two=34M journal=1G
# modules: ext4 loop dm-mod dm-crypt xts ecb raid1 dm-delay dm-multipath dm-round-robin scsi_debug sd_mod
# parameters: scsi_debug.dev_size_mb=32 scsi_debug.add_host=2 scsi_debug.lbpu=1
# tools: mkfs.ext4 e2fsck fio blkdiscard dmsetup mdadm
# default: no
# timeout: 1200
. /devices.sh
ONE=$(disk one)
TWO=$(disk two)
SECTORS=65536

# mapped NAME TABLE...: /dev/mapper/NAME.
mapped() {
    mapped_name=$1
    shift
    dmsetup create "$mapped_name" --table "0 $SECTORS $*"
}

mount_journal

KEY=0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef
mapped crypt "crypt aes-xts-plain64 $KEY 0 $ONE 0 1 allow_discards"
walk crypt /dev/mapper/crypt
dmsetup remove crypt

# The device below is protected, and written through the one above.
mapped above "linear $ONE 0"
begin_walk below "$ONE"
write_all_ways /dev/mapper/above
end_walk below "$ONE"
dmsetup remove above

mapped delay "delay $ONE 0 0 $ONE 0 300"
walk delay /dev/mapper/delay
dmsetup remove delay

export MDADM_NO_UDEV=1
mdadm --create /dev/md0 --run --level=1 --raid-devices=2 --assume-clean --metadata=1.2 "$ONE" "$TWO" 2> /dev/null
begin_walk raid1 /dev/md0
write_all_ways /dev/md0
step "raid1 loses a leg and gets it back"
begin_files /dev/md0
mdadm --quiet /dev/md0 --fail "$TWO"
mdadm --quiet /dev/md0 --remove "$TWO"
dd if=/dev/urandom of=/mnt/walked/degraded bs=64k count=8 conv=fsync 2> /dev/null
mdadm --quiet /dev/md0 --add "$TWO"
end_files
mdadm --wait /dev/md0 || true
end_walk raid1 /dev/md0
mdadm --quiet --stop /dev/md0

# Both disks of scsi_debug are the same memory, as two paths to one disk are.
mapped multipath "multipath 0 0 1 1 round-robin 0 2 1 /dev/sda 1 /dev/sdb 1"
begin_walk multipath /dev/mapper/multipath
write_all_ways /dev/mapper/multipath
step "multipath loses a path"
begin_files /dev/mapper/multipath
dmsetup message multipath 0 fail_path 8:0
dd if=/dev/urandom of=/mnt/walked/one_path bs=64k count=8 conv=fsync 2> /dev/null
dmsetup message multipath 0 reinstate_path 8:0
end_files
end_walk multipath /dev/mapper/multipath
