#!/bin/sh
# Process 1 of a guest that is a Debian with systemd, until its root directory is there: loads modules, brings the scenario onto the
# root disk, and hands over to systemd.
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
while read -r module; do
    # shellcheck disable=SC2046 # several parameters are several words
    insmod "/modules/$module" $(sed -n "s/^${module%.ko}\.//p" /modules/parameters) || echo "guest: cannot load $module"
done < /modules/order

root=$(sed -n 's/^root=//p' /disks)
until [ -b "$root" ]; do sleep 0.1; done
mount -t ext4 "$root" /mnt || poweroff -f
sh /debian-setup.sh /mnt /
echo "guest: $(uname -r), up $(cut -d' ' -f1 /proc/uptime) s, to systemd"
umount /proc /sys
mount --move /dev /mnt/dev
exec switch_root /mnt /lib/systemd/systemd
