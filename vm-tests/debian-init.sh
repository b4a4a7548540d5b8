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
mkdir -p /mnt/scenario
cp /lib.sh /disks /mnt/
cp /scenario.sh /debian-run.sh /mnt/scenario/
cat > /mnt/etc/systemd/system/scenario.service <<'UNIT'
[Unit]
Description=The scenario
After=multi-user.target
[Service]
ExecStart=/bin/sh /scenario/debian-run.sh
StandardOutput=journal+console
StandardError=journal+console
TimeoutStopSec=1s
UNIT
# What nobody waits for takes the emulated processor half a minute.
for unit in getty@.service serial-getty@.service systemd-logind.service apt-daily.timer apt-daily-upgrade.timer \
    dpkg-db-backup.timer e2scrub_all.timer e2scrub_reap.service fstrim.timer systemd-update-utmp.service; do
    ln -sf /dev/null "/mnt/etc/systemd/system/$unit"
done
mkdir -p /mnt/etc/systemd/system/multi-user.target.wants
ln -sf ../scenario.service /mnt/etc/systemd/system/multi-user.target.wants/scenario.service
echo "guest: $(uname -r), up $(cut -d' ' -f1 /proc/uptime) s, to systemd"
umount /proc /sys
mount --move /dev /mnt/dev
exec switch_root /mnt /lib/systemd/systemd
