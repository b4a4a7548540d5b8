#!/bin/sh
# What happens to a machine while it is protected: its clock is set forward and back by hours, a processor goes and comes
# back, it sleeps, and very many block devices appear and go. Marks go on and nothing is lost.
# kernels: 6.1 6.12
# disks: source=64M target=64M journal=2G
# modules: ext4 loop brd
# tools: mkfs.ext4 e2fsck fio
# default: no
# timeout: 3600
# compare: source target
# fsck: source target
. /lib.sh
# Emulated, and with thousands of devices, a start takes its time.
LIVE_DEADLINE=300
SOURCE=$(disk source)
TARGET=$(disk target)
DEVICES=500
[ -z "${FULL:-}" ] || DEVICES=10000
HOUR=3600

points() { afterwrite points $JOURNAL | awk '$1 ~ /^[0-9]+$/ { print $1 }'; }
last_point() { points | tail -n 1; }
number_of() { afterwrite points $JOURNAL | awk -v label="$1" '$NF == label { print $1 }'; }
newer_than() { [ "$(last_point)" -gt "$1" ]; }
# marks_go_on WHAT: one more is made by itself.
marks_go_on() {
    last=$(last_point)
    wait_for 60 "a mark $1 (after mark $last)" newer_than "$last"
}
set_clock() { date -s "@$(($(date +%s) + $1))" > /run/date.log; }
# point_at TIME: the number of the mark that this means.
point_at() {
    time=$(date -u -d "@$1" +%Y-%m-%dT%H:%M:%SZ)
    afterwrite replay $JOURNAL --to "time:$time" --target /journal/none.img --dry-run | sed -n 's/^point *mark \([0-9]*\),.*/\1/p'
}
# timed WHAT COMMAND...: how long it took, in hundredths of a second of the guest.
timed() {
    timed=$1
    shift
    begun=$(cut -d' ' -f1 /proc/uptime | tr -d .)
    "$@" > /run/timed.log 2>&1 || fail "$timed failed: $(tail -n 1 /run/timed.log)"
    echo "time: $timed: $(($(cut -d' ' -f1 /proc/uptime | tr -d .) - begun)) cs"
}

step "protect a file system under load"
source_under_load
start_protect "$SOURCE" "$TARGET" --mark-every 2s
marks_go_on "before all that"

step "the clock is set forward by five hours"
mark before
BEFORE=$(($(date +%s) + 1))
set_clock $((5 * HOUR))
marks_go_on "after the clock was set forward"
mark ahead
[ "$(point_at $(($(date +%s) + 1)))" -ge "$(number_of ahead)" ] || fail "the new time does not mean the new marks"
[ "$(point_at "$BEFORE")" -lt "$(number_of ahead)" ] || fail "the time before the step means a mark after it"

step "and back by ten"
set_clock $((-10 * HOUR))
marks_go_on "after the clock was set back"
mark behind
# Of the marks at or before a time the one made last counts: the clock is believed that was set last.
[ "$(point_at "$BEFORE")" -ge "$(number_of behind)" ] || fail "the clock is not believed that was set last"
NONE=$(point_at $((BEFORE - 6 * HOUR)) 2> /dev/null)
[ -z "$NONE" ] || fail "a time before all marks means mark $NONE"
set_clock $((5 * HOUR))
marks_go_on "after the clock was set right"
points | sort -n -c || fail "the points are out of order"

step "a processor goes and comes back"
for turn in 1 2 3; do
    echo 0 > /sys/devices/system/cpu/cpu1/online
    sleep 0.3
    echo 1 > /sys/devices/system/cpu/cpu1/online
    sleep 0.3
done
echo 0 > /sys/devices/system/cpu/cpu1/online
marks_go_on "on one processor"
echo 1 > /sys/devices/system/cpu/cpu1/online
marks_go_on "on two processors"

# To memory (S3): suspended to idle, these machines are not woken by their clock.
step "it sleeps, with $(cat /sys/power/mem_sleep), and is woken by its clock"
for turn in 1 2; do
    echo 0 > /sys/class/rtc/rtc0/wakealarm
    echo +3 > /sys/class/rtc/rtc0/wakealarm
    slept=$(cat /sys/power/suspend_stats/success)
    echo mem > /sys/power/state
    [ "$(cat /sys/power/suspend_stats/success)" -gt "$slept" ] || fail "it did not sleep"
    marks_go_on "after sleeping"
done

# Timed without a load, which would take most of an emulated processor.
end_load
step "$DEVICES block devices appear"
timed "status before" afterwrite status
timed "doctor before" afterwrite doctor "$SOURCE"
grep MemAvailable /proc/meminfo
begin_load /mnt/source
rmmod brd
timed "adding $DEVICES devices" insmod /modules/brd.ko rd_nr=$DEVICES rd_size=1024
[ "$(ls /sys/block | grep -c ram)" -eq $DEVICES ] || fail "only $(ls /sys/block | grep -c ram) devices came"
grep MemAvailable /proc/meminfo
dd if=/dev/urandom of=/dev/ram7 bs=4k count=16 2> /dev/null
marks_go_on "with $DEVICES devices"
end_load
timed "status" afterwrite status
timed "doctor" afterwrite doctor "$SOURCE"
stop_protect
timed "attaching and comparing" start_protect "$SOURCE" "$TARGET" --mark-every 2s
begin_load /mnt/source
rmmod brd
marks_go_on "after the devices went"

last_mark_and_compare
