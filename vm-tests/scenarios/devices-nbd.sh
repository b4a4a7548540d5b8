#!/bin/sh
# A network block device: its server is a process of the same machine, over a file on a disk of its own.
# kernels: 6.1 6.12
# disks: backing=160M journal=1G
# modules: ext4 loop nbd
# parameters: nbd.nbds_max=2
# tools: mkfs.ext4 e2fsck fio blkdiscard nbd-server nbd-client
# default: no
# timeout: 1200
. /devices.sh

mount_journal
mkfs.ext4 -q "$(disk backing)"
mkdir -p /mnt/backing
mount -t ext4 "$(disk backing)" /mnt/backing
truncate -s 32M /mnt/backing/volume.img
cat > /run/nbd.conf << END
[generic]
listenaddr = 127.0.0.1
port = 10809
[volume]
exportname = /mnt/backing/volume.img
flush = true
fua = true
trim = true
END
nbd-server -C /run/nbd.conf -d > /run/nbd.log 2>&1 &
wait_for 20 "the server" nbd-client 127.0.0.1 10809 /dev/nbd0 -N volume -block-size 512

begin_walk nbd /dev/nbd0
write_all_ways /dev/nbd0
step "a file system on it"
begin_files /dev/nbd0
end_files
end_walk nbd /dev/nbd0
nbd-client -d /dev/nbd0
