#!/bin/sh
# The guest's process 1: mounts, loads modules, runs the scenario, says how it went, powers off.
export PATH=/bin HOME=/root
# There is no udev: dmsetup makes the nodes of its devices itself.
export DM_DISABLE_UDEV=1
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/shm
mount -t tmpfs tmpfs /dev/shm
mount -t tmpfs tmpfs /tmp
mount -t tmpfs tmpfs /run
mount -t tracefs tracefs /sys/kernel/tracing
mount -t bpf bpf /sys/fs/bpf
mount -t debugfs debugfs /sys/kernel/debug
mount -t securityfs securityfs /sys/kernel/security
ip link set lo up
ulimit -l unlimited

echo "guest: $(uname -r), up $(cut -d' ' -f1 /proc/uptime) s"
while read -r module; do
    # shellcheck disable=SC2046 # several parameters are several words
    insmod "/modules/$module" $(sed -n "s/^${module%.ko}\.//p" /modules/parameters) || echo "guest: cannot load $module"
done < /modules/order

# A scenario that hangs is stopped by the host: shortly before, show where it hangs.
{
    sleep $(($(cat /timeout) - 20))
    echo "guest: not done in time, this is what runs and what waits:"
    ps
    for process in $(pidof afterwrite); do
        for thread in /proc/"$process"/task/*; do
            echo "$thread $(cat "$thread/comm") $(cut -d' ' -f3,14,15 "$thread/stat") $(cat "$thread/wchan" "$thread/syscall")"
            cat "$thread/stack"
        done
    done
    tail -n 20 /run/protect.log
    timeout 5 afterwrite status --json
    echo w > /proc/sysrq-trigger
    echo l > /proc/sysrq-trigger
    dmesg | tail -n 60
} > /dev/console 2>&1 &

cd /root || poweroff -f
sh /scenario.sh
status=$?
why=$(cat /run/verdict 2>/dev/null)
# A failure inside $(...) ends only that, but leaves its word.
[ $status -ne 0 ] || [ -z "$why" ] || status=1
echo "guest: done after $(cut -d' ' -f1 /proc/uptime) s"
sync
case $status in
    0) echo "AFTERWRITE-VERDICT pass" ;;
    77) echo "AFTERWRITE-VERDICT skip $why" ;;
    *) echo "AFTERWRITE-VERDICT fail ${why:-exit status $status}" ;;
esac
poweroff -f
