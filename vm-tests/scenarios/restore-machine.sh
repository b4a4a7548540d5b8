#!/bin/sh
# "Restoring a machine" of docs/OPERATIONS.md, step by step: a machine with GRUB, /boot on ext4 and its root on xfs on LVM is protected, as a whole disk
# and as single volumes, and loses its disk. It is restored to two new ones, each of which then starts a machine that has no other.
# kernels: 6.12
# disks: root=1536M machine=640M journal=2G parts=704M whole=704M
# debian: root
# initramfs: restore-machine.toml initramfs-tools
# packages: lvm2 xfsprogs fdisk grub-pc-bin grub2-common
# boots: parts whole
# default: no
# timeout: 5400
. /lib.sh
VOLUMES='whole boot root'

# ---- the machine

all_live() { [ "$(afterwrite status --json 2> /dev/null | grep -o '"state": *"live"' | wc -l)" = "$(echo $VOLUMES | wc -w)" ]; }

# enter DISK: mounts the machine's file systems, and what a boot loader's tools want to see.
enter() {
    mount /dev/vg/root /mnt
    mount "${1}2" /mnt/boot
    for directory in dev proc sys run; do mount --bind /$directory /mnt/$directory; done
}

# unplug DISK: as if it was pulled out.
unplug() {
    sync
    name=${1#/dev/}
    echo 1 > "$(readlink -f "/sys/block/$name/device")/../remove"
    wait_for 30 "$1 to be gone" test ! -e "/sys/block/$name"
}

build_machine() {
    step "a machine on $MACHINE"
    sfdisk --quiet "$MACHINE" << TABLE
label: gpt
size=1M, type=21686148-6449-6E6F-744E-656564454649
size=128M, type=linux
type=lvm
TABLE
    udevadm settle
    pvcreate --quiet "${MACHINE}3"
    vgcreate --quiet vg "${MACHINE}3"
    lvcreate --quiet --name root --size 480M vg
    mkfs.ext4 -q "${MACHINE}2"
    mkfs.xfs -q /dev/vg/root
    mount /dev/vg/root /mnt
    mkdir /mnt/boot
    mount "${MACHINE}2" /mnt/boot
    step "this system is copied onto it, without what it can do without: emulated, each 100 MB take minutes"
    tar --create --one-file-system --directory / --exclude=./usr/share/locale --exclude=./usr/share/doc --exclude=./usr/share/man \
        --exclude=./usr/share/perl --exclude='./usr/lib/python3*' --exclude='./usr/lib/x86_64-linux-gnu/libicu*' \
        --exclude='./usr/lib/udev/hwdb*' . | tar --extract --directory /mnt
    umount /mnt/boot /mnt
    enter "$MACHINE"
    for mount in '/ xfs' '/boot ext4'; do
        echo "UUID=$(findmnt -no UUID "/mnt${mount% *}") $mount defaults 0 0"
    done > /mnt/etc/fstab
    cat /mnt/etc/fstab
    cat > /mnt/etc/default/grub << 'GRUB'
GRUB_TIMEOUT=0
GRUB_TERMINAL=console
GRUB_CMDLINE_LINUX="console=ttyS0 panic=-1 mitigations=off"
GRUB
    step "its boot loader"
    chroot /mnt grub-install "$MACHINE"
    chroot /mnt update-grub
    umount -R /mnt
}

# ---- what the runbook says

# check_file_systems DISK: step 4.
check_file_systems() {
    e2fsck -fp "${1}2" || fail "e2fsck finds /boot damaged"
    mount /dev/vg/root /mnt
    umount /mnt
    xfs_repair -n /dev/vg/root > /run/fsck.log 2>&1 || fail "xfs_repair finds the root damaged"
}

restore_whole() {
    step "restore the whole disk to $WHOLE"
    afterwrite points /backup/whole.journal
    afterwrite replay /backup/whole.journal --to mark:nightly --target "$WHOLE" --dry-run
    afterwrite replay /backup/whole.journal --to mark:nightly --target "$WHOLE" --force || fail "the whole disk is not restored"
    partx --update "$WHOLE"
    sfdisk --relocate gpt-bak-std "$WHOLE"
    udevadm settle
    step "check what is on it"
    vgchange -ay vg
    check_file_systems "$WHOLE"
    vgchange -an vg
}

restore_parts() {
    step "partitions and logical volumes on $PARTS"
    sfdisk --quiet "$PARTS" < /backup/machine.sfdisk
    udevadm settle
    pvcreate --uuid "$(sed -n '/pv0 {/,/}/s/.*id = "\(.*\)"/\1/p' /backup/vg.lvm)" --restorefile /backup/vg.lvm "${PARTS}3"
    vgcfgrestore --file /backup/vg.lvm vg
    vgchange -ay vg
    POINT="mark:$(cat /backup/group)"
    for volume in "boot ${PARTS}2" "root /dev/vg/root"; do
        step "restore $volume"
        afterwrite points "/backup/${volume% *}.journal"
        afterwrite replay "/backup/${volume% *}.journal" --to "$POINT" --target "${volume#* }" --force || fail "$volume is not restored"
    done
    step "check them, install the boot loader"
    check_file_systems "$PARTS"
    enter "$PARTS"
    chroot /mnt grub-install "$PARTS"
    umount -R /mnt
}

# go_on VOLUME DEVICE: step 6. The volume is known as the old one, and its journal goes on.
go_on() {
    step "the journal of $1 goes on"
    JOURNAL=/backup/$1.journal
    start_protect "$2" "/backup/$1.img" --mark-every never --origin off
    grep 'comparing the volume with the target' $PROTECT_LOG || fail "$1 is not compared"
    mark restored
    stop_protect
    for label in "$(cat /backup/group)" stop restored; do
        afterwrite points "$JOURNAL" | grep -q "$label" || fail "the journal of $1 lost $label"
    done
    same "$2" "/backup/$1.img"
}

case $(stage) in
first)
    MACHINE=$(disk machine)
    PARTS=$(disk parts)
    WHOLE=$(disk whole)
    build_machine

    step "protect it"
    mkfs.ext4 -q "$(disk journal)"
    mkdir -p /backup
    mount "$(disk journal)" /backup
    sfdisk --dump "$MACHINE" > /backup/machine.sfdisk
    vgcfgbackup --file /backup/vg.lvm vg
    mount /dev/vg/root /mnt
    mount "${MACHINE}2" /mnt/boot
    afterwrite config check
    systemctl start afterwrite || fail "$(systemctl status --no-pager afterwrite)"
    wait_for 1800 "the first copies" all_live

    step "mark it"
    files /mnt/srv/keep 6 64
    files /mnt/boot/keep 3 64
    echo restored > /mnt/var/lib/stage
    for directory in srv usr/bin boot/keep; do sums /mnt/$directory > "/mnt/root/sums.${directory%/*}"; done
    afterwrite mark whole --label nightly || fail "no mark"
    afterwrite mark --group machine --label nightly > /backup/group || fail "no mark of the group"
    for volume in $VOLUMES; do
        afterwrite points /backup/$volume.journal | grep nightly | grep -qw fs || fail "$volume: $(afterwrite points /backup/$volume.journal)"
    done

    step "what nobody wants back"
    rm -r /mnt/boot/vmlinuz* /mnt/boot/grub /mnt/usr/lib/systemd /mnt/srv/keep/file1 /mnt/boot/keep/file1
    files /mnt/srv/keep 2 64
    files /mnt/boot/keep 2 80
    files /mnt/srv/later 3 64
    umount /mnt/boot /mnt
    systemctl stop afterwrite

    step "the disk is lost"
    vgchange -an vg
    blkdiscard --force "$MACHINE"
    unplug "$MACHINE"

    restore_whole
    # Two disks of one machine: LVM would find each volume twice.
    unplug "$WHOLE"
    restore_parts
    LIVE_DEADLINE=900
    go_on boot "${PARTS}2"
    go_on root /dev/vg/root
    vgchange -an vg
    ;;
restored)
    step "restored: $(cat /proc/cmdline)"
    systemctl is-active multi-user.target || fail "multi-user.target is not reached"
    FAILED=$(systemctl list-units --failed --plain --no-legend)
    [ -z "$FAILED" ] || fail "these failed: $FAILED"
    lsblk -o NAME,SIZE,FSTYPE,MOUNTPOINT
    [ "$(echo /sys/block/vd*)" = /sys/block/vda ] || fail "there are other disks"
    [ "$(findmnt -no SOURCE,FSTYPE / | tr -s ' ')" = "/dev/mapper/vg-root xfs" ] || fail "the root is not the logical volume"
    [ "$(findmnt -no SOURCE,FSTYPE /boot | tr -s ' ')" = "/dev/vda2 ext4" ] || fail "/boot is not the second partition"
    for directory in srv usr/bin boot/keep; do expect_sums /$directory "/root/sums.${directory%/*}"; done
    ;;
esac
