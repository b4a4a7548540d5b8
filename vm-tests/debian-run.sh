#!/bin/sh
# Runs the scenario once each boot, and says how it went, as init.sh does. `next_boot` (lib.sh) is no end of it.
export HOME=/root
cd /root || exit 1
sh /scenario/scenario.sh
status=$?
[ $status -ne 88 ] || exit 0
why=$(cat /run/verdict 2> /dev/null)
[ $status -ne 0 ] || [ -z "$why" ] || status=1
sync
case $status in
    0) echo "AFTERWRITE-VERDICT pass" > /dev/console ;;
    77) echo "AFTERWRITE-VERDICT skip $why" > /dev/console ;;
    *) journalctl -b --no-pager -n 60 > /dev/console
        echo "AFTERWRITE-VERDICT fail ${why:-exit status $status}" > /dev/console ;;
esac
systemctl poweroff
