#!/bin/sh
# protect is killed under load, a hundred times in full length: while it starts, compares, captures, makes a mark and applies it. The
# replica ends identical, and the mark after it all holds what was there.
# kernels: 6.1 6.12
# disks: source=48M target=48M journal=3G
# modules: ext4 loop
# tools: mkfs.ext4 e2fsck fio
# default: no
# timeout: 3600
# compare: source target
# fsck: source target
. /lib.sh
# Full length takes long, on a machine that may have other work.
LIVE_DEADLINE=400
SOURCE=$(disk source)
TARGET=$(disk target)
KILLS=4
ADOPTED=0
[ -z "${FULL:-}" ] || KILLS=100

# From 0 to $1 - 1.
random() { echo $(($(od -An -N4 -tu4 /dev/urandom) % $1)); }

step "protect a file system under load"
source_under_load

for kill in $(seq $KILLS); do
    # Every second one is left to become live first.
    wait_ms=$(random 3000)
    step "kill $kill, $((kill % 2)), after $wait_ms ms"
    if [ $((kill % 2)) -eq 0 ]; then
        start_protect "$SOURCE" "$TARGET" --mark-every 1s
        if adopted; then ADOPTED=$((ADOPTED + 1)); fi
    else
        launch_protect "$SOURCE" "$TARGET" --mark-every 1s
    fi
    usleep $((wait_ms * 1000))
    kill -0 "$PROTECT_PID" || fail "protect ended by itself"
    kill_protect
done

echo "$ADOPTED of $((KILLS / 2)) that became live had adopted the probes of the killed one"

start_protect "$SOURCE" "$TARGET" --mark-every never
last_mark_and_compare
