#!/bin/sh
# debian-setup.sh ROOT FILES: has the Debian under ROOT run the scenario that lies under FILES once each boot.
root=$1
files=$2
mkdir -p "$root/scenario" "$root/etc/systemd/system/multi-user.target.wants"
cp "$files/lib.sh" "$files/disks" "$root/"
cp "$files/scenario.sh" "$files/debian-run.sh" "$root/scenario/"
cat > "$root/etc/systemd/system/scenario.service" <<'UNIT'
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
    ln -sf /dev/null "$root/etc/systemd/system/$unit"
done
ln -sf ../scenario.service "$root/etc/systemd/system/multi-user.target.wants/scenario.service"
