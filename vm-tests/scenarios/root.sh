#!/bin/sh
# The root of a Debian is protected from before it is mounted until after it is read-only: of three reboots (ten in full length) none compares anything,
# and the machine starts from the replica when the root's disk is gone.
# kernels: 6.12
# disks: root=1G target=1G journal=1G
# debian: root
# initramfs: root.toml initramfs-tools
# boots-from: target
# default: no
# timeout: 5400
# compare: root target
# fsck: target
. /lib.sh
BOOTS=3
! grep -qw FULL=1 /proc/cmdline || BOOTS=10
JOURNAL=/backup/root.journal
# Of some 300 MB that a comparison would read. A boot and a shutdown write logs, lists of packages and the like.
WRITTEN_MAX=$((64 * 1024 * 1024))

live() { afterwrite status --json 2> /dev/null | grep -q '"state": *"live"'; }
caught_up() { [ "$(status_field consistent)" = true ]; }
log_says() { journalctl --boot --unit=afterwrite --output=cat --no-pager | grep -q "$1"; }

STAGE=$(stage)
case $STAGE in
first)
    step "protect the root"
    mkdir -p /var/log/journal
    journalctl --flush
    mkfs.ext4 -q "$(disk journal)"
    mkdir -p /backup
    printf '%s /backup ext4 defaults 0 2\n' "$(disk journal)" >> /etc/fstab
    systemctl daemon-reload
    systemctl start backup.mount
    systemctl enable --now afterwrite || fail "$(systemctl status --no-pager afterwrite)"
    wait_for 900 "the baseline" live
    [ "$(status_field probes)" = '"early"' ] || fail "the probes were not attached by the initramfs: $(status_field probes)"
    files /srv/boot0 3 64
    sums /srv > /root/sums
    next_boot 1
    ;;
restored)
    step "the replica is the root's disk, and another disk the target"
    systemctl is-active multi-user.target || fail "multi-user.target is not reached"
    FAILED=$(systemctl list-units --failed --plain --no-legend)
    [ -z "$FAILED" ] || fail "these failed: $FAILED"
    expect_sums /srv /root/sums
    wait_for 900 "the volume to be live" live
    log_says 'it does not hold what was applied to it' || fail "the new disk is taken for the replica"
    afterwrite mark --label restored || fail "no mark"
    wait_for 900 "the new replica" caught_up
    ;;
*)
    step "after reboot $STAGE"
    wait_for 300 "the volume to be live" live
    journalctl --boot --unit=afterwrite --output=cat --no-pager | grep 'root: '
    log_says 'between the last stop and the early attach' || fail "reboot $STAGE: the volume is compared"
    [ "$(status_field probes)" = '"early"' ] || fail "reboot $STAGE: the probes are $(status_field probes)"
    expect_sums /srv /root/sums
    afterwrite mark --label "boot$STAGE" || fail "no mark"
    READ=$(status_field journaled_bytes)
    echo "reboot $STAGE: $READ bytes journaled, $(status_field seen) writes seen since attach"
    [ "$READ" -lt $WRITTEN_MAX ] || fail "reboot $STAGE: $READ bytes were read"
    # Not synced: the shutdown does that, after the service has stopped.
    mkdir -p "/srv/boot$STAGE"
    head -c 300000 /dev/urandom > "/srv/boot$STAGE/late"
    sums /srv > /root/sums
    [ "$STAGE" -ge $BOOTS ] || next_boot $((STAGE + 1))
    echo "all $BOOTS reboots compared nothing"
    echo restored > /var/lib/stage
    ;;
esac
