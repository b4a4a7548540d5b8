#!/bin/sh
# Each rung of the ladder of block probes, asked for by name, captures everything by itself.
# kernels: 6.1 6.12
# disks: source=64M target=64M journal=768M
# modules: ext4
# tools: mkfs.ext4 fio
# default: 6.1
# timeout: 1200
# compare: source target
. /lib.sh
SOURCE=$(disk source)
TARGET=$(disk target)

mount_journal
mkdir -p /mnt/source
for rung in tp_btf raw_tp tracepoint; do
    step "$rung"
    JOURNAL=/journal/$rung
    # The replica of the rung before is in the way.
    start_protect "$SOURCE" "$TARGET" --force --rung $rung --mark-every never
    afterwrite status --json | grep -q "\"$rung\"" || fail "status does not say $rung"
    mkfs.ext4 -qF "$SOURCE"
    mount -t ext4 "$SOURCE" /mnt/source
    begin_load /mnt/source
    files /mnt/source/$rung 6 256
    mark $rung
    files /mnt/source/later 3 256
    end_load
    umount /mnt/source
    stop_protect
    same "$SOURCE" "$TARGET"
done
