#!/bin/sh
# The package on a Debian with systemd: installed, protecting, reloaded, killed, rebooted, upgraded under load, stopped, purged.
# kernels: 6.12
# disks: root=1G source=64M target=64M journal=768M
# modules: ext4 loop
# debian: root
# default: no
# timeout: 1800
# compare: source target
. /lib.sh
SOURCE=$(disk source)
TARGET=$(disk target)
JOURNAL=/backup/data.journal
CONFIG=/etc/afterwrite/config.toml

# configure OPTION...: lines of the only volume's table.
configure() {
    mkdir -p /etc/afterwrite
    printf '[volume.data]\nsource = "%s"\njournal = "%s"\ntarget = "%s"\n' "$SOURCE" $JOURNAL "$TARGET" > $CONFIG
    printf '%s\n' 'mark-every = "5s"' "$@" >> $CONFIG
}

main_pid() { systemctl show --property=MainPID --value afterwrite; }
live() { afterwrite status --json 2> /dev/null | grep -q '"state": *"live"'; }
wait_live() { wait_for 240 "the volume to be live" live; }
log_says() { journalctl --boot --unit=afterwrite --output=cat --no-pager | grep -q "$1"; }
expect_log() { log_says "$1" || fail "the log does not say: $1"; }
is_another() { [ "$(main_pid)" != "$1" ] && [ "$(main_pid)" != 0 ]; }

# expect_mark LABEL: it is made of a frozen file system.
expect_mark() {
    afterwrite mark --label "$1" > /run/mark || fail "mark $1 failed"
    afterwrite points $JOURNAL | grep "$1" | grep -qw fs || fail "mark $1: $(cat /run/mark)"
}

# The file system takes writes, so nobody holds it frozen.
expect_thawed() { timeout 60 dd if=/dev/zero of=/srv/thawed bs=4k count=1 conv=fsync 2> /dev/null || fail "/srv is frozen"; }

case $(stage) in
first)
    step "install"
    mkdir -p /var/log/journal
    journalctl --flush
    apt-get install --yes /scenario/afterwrite_0*.deb > /run/apt.log 2>&1 || fail "$(tail -n 3 /run/apt.log)"
    for file in /lib/systemd/system/afterwrite.service /usr/share/man/man1/afterwrite-protect.1 \
        /usr/share/bash-completion/completions/afterwrite /usr/share/doc/afterwrite/examples/config.toml; do
        # The packager of a small system may have told dpkg to leave documentation away.
        [ -e "$file" ] || dpkg -L afterwrite | grep -qx "$file" || fail "$file is not in the package"
    done
    getent group afterwrite > /dev/null || fail "there is no group afterwrite"
    systemd-analyze --man=no verify /lib/systemd/system/afterwrite.service || fail "systemd finds mistakes in the unit"
    systemctl start afterwrite
    [ "$(systemctl is-active afterwrite || true)" = inactive ] || fail "it runs without a configuration"

    step "protect"
    mkfs.ext4 -q "$(disk journal)"
    mkfs.ext4 -q "$SOURCE"
    mkdir -p /backup /srv
    # The volume is mounted after the service is ready, and unmounted before it stops; fsck at boot would write before.
    printf '%s /backup ext4 defaults 0 2\n' "$(disk journal)" >> /etc/fstab
    printf '%s /srv ext4 nofail,x-systemd.after=afterwrite.service 0 0\n' "$SOURCE" >> /etc/fstab
    systemctl daemon-reload
    systemctl start backup.mount
    configure 'trust-reboot = true'
    afterwrite config check || fail "the configuration is wrong"
    systemctl enable --now afterwrite || fail "$(systemctl status --no-pager afterwrite)"
    wait_live
    PID=$(main_pid)
    [ "$(readlink "/proc/$PID/ns/mnt")" = "$(readlink /proc/1/ns/mnt)" ] || fail "it is in a mount namespace of its own"
    grep -E 'CapBnd|NoNewPrivs|Seccomp:' "/proc/$PID/status"
    grep -q 'NoNewPrivs:.*1' "/proc/$PID/status" || fail "it may get new privileges"

    step "what is mounted after the start is frozen"
    systemctl start srv.mount
    files /srv/one 6 64
    expect_mark one

    step "the group may look, and no more"
    GROUP="setpriv --reuid=65534 --regid=$(getent group afterwrite | cut -d: -f3) --clear-groups"
    $GROUP afterwrite status --json | grep -q '"state": *"live"' || fail "the group can't read the status"
    $GROUP test -x /run/afterwrite/service || fail "the group can't reach the socket of the service"
    ! $GROUP afterwrite mark --label stranger 2> /dev/null || fail "the group can make marks"
    ! setpriv --reuid=65534 --regid=65534 --clear-groups afterwrite status --json 2> /dev/null | grep -q live ||
        fail "everybody can read the status"

    step "reload"
    configure 'mark-evry = "1s"'
    ! systemctl reload afterwrite || fail "a wrong configuration is taken"
    expect_log 'mark-every'
    configure 'trust-reboot = true' 'daily = 7'
    systemctl reload afterwrite || fail "a reload fails"
    wait_live
    [ "$(main_pid)" = "$PID" ] || fail "a reload replaced the service"

    step "killed while it makes mark after mark"
    for round in 1 2; do
        files /srv/killed 3 64
        PID=$(main_pid)
        { while kill -0 "$PID"; do afterwrite mark; done; } > /dev/null 2>&1 &
        sleep 2.$round
        kill -KILL "$PID"
        wait
        expect_thawed
        wait_for 60 "systemd to start it again" is_another "$PID"
        wait_live
        adopted || fail "the probes were not taken over"
    done
    files /srv/two 6 64
    expect_mark two
    sums /srv > /root/sums
    next_boot trusting
    ;;
trusting)
    step "after a reboot"
    [ "$(systemctl is-active afterwrite)" = active ] || fail "it did not start"
    wait_live
    journalctl --boot=-1 --unit=afterwrite --output=cat --no-pager --lines=4
    expect_log 'nothing was written since the last stop'
    mountpoint -q /srv || fail "/srv is not mounted"
    expect_sums /srv /root/sums
    files /srv/three 6 64
    expect_mark three

    step "upgrade under load"
    PID=$(main_pid)
    { number=0; while [ ! -e /run/end ]; do number=$((number + 1)); files "/srv/load$((number % 8))" 3 40; sleep 0.5; done; } &
    LOAD=$!
    sleep 2
    apt-get install --yes /scenario/afterwrite_99*.deb > /run/apt.log 2>&1 || fail "$(tail -n 3 /run/apt.log)"
    wait_for 60 "the new version to run" is_another "$PID"
    wait_live
    adopted || fail "the probes were not taken over"
    : > /run/end
    wait $LOAD
    expect_mark four
    sums /srv > /root/sums
    configure
    systemctl reload afterwrite
    wait_live
    next_boot comparing
    ;;
comparing)
    step "after a reboot that is not trusted"
    wait_live
    expect_log 'comparing the volume with the target'
    expect_sums /srv /root/sums
    files /srv/five 6 64

    step "stop, compare"
    unmount /srv
    systemctl stop afterwrite
    expect_log 'stopped in order: '
    [ "$(systemctl is-failed afterwrite || true)" = inactive ] || fail "it did not stop in order"
    same "$SOURCE" "$TARGET"
    afterwrite journal check $JOURNAL || fail "the journal is damaged"

    step "purge"
    systemctl start afterwrite
    wait_live
    apt-get purge --yes afterwrite > /run/apt.log 2>&1 || fail "$(tail -n 3 /run/apt.log)"
    ! pidof afterwrite || fail "it still runs"
    ! getent group afterwrite || fail "the group is left"
    LEFT=$(find / -xdev -name '*afterwrite*' ! -path '/scenario/*' ! -path '/proc/*' ! -path '/var/log/*')
    [ -z "$LEFT" ] || fail "this is left: $LEFT"
    [ ! -e /run/afterwrite ] && [ ! -e /sys/fs/bpf/afterwrite ] || fail "something is left in /run or in the kernel"
    [ -d $JOURNAL ] || fail "the journal is gone"
    ;;
esac
