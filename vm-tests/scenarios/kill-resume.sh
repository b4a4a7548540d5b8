#!/bin/sh
# The collector is killed under load again and again, also while it holds the file system frozen for a mark. Started
# again it catches up, the file system is never left frozen, and the replica ends identical.
# kernels: 6.1 6.12
# disks: source=48M target=48M journal=768M
# modules: ext4 loop
# tools: mkfs.ext4 e2fsck fio
# default: 6.12
# timeout: 1200
# compare: source target
. /lib.sh
SOURCE=$(disk source)
TARGET=$(disk target)

# comes_back SECONDS: does a write to the source? On a frozen file system it hangs for good, so another process tries.
comes_back() {
    rm -f /run/written
    { : > /mnt/source/probe && : > /run/written; } &
    deadline=$(($(uptime_seconds) + $1))
    until [ -e /run/written ]; do
        [ "$(uptime_seconds)" -lt "$deadline" ] || return 1
        usleep 2000
    done
}

# Halts protect at one instant of a mark after the other until the source is found frozen, and kills it there.
kill_while_frozen() {
    for attempt in $(seq 30); do
        afterwrite mark --label "interrupted$attempt" > /run/mark.log 2>&1 &
        MARK_PID=$!
        while kill -0 $MARK_PID 2> /dev/null; do
            kill -STOP "$PROTECT_PID"
            if ! comes_back 3; then
                echo "frozen in the mark of attempt $attempt"
                kill_protect
                wait $MARK_PID && fail "a mark succeeded whose collector was killed" || true
                return
            fi
            kill -CONT "$PROTECT_PID"
        done
        wait $MARK_PID || fail "mark interrupted$attempt failed"
    done
    fail "in 30 marks the source was never found frozen"
}

step "protect a file system under load"
source_under_load

step "killed during the first copy"
launch_protect "$SOURCE" "$TARGET" --mark-every never
wait_for 60 "the journal to be begun" test -e $JOURNAL/volume.toml
sleep 0.5
kill_protect

step "started again"
start_protect "$SOURCE" "$TARGET" --mark-every never
mark first

for round in 1 2; do
    step "killed while capturing, round $round"
    files "/mnt/source/captured$round" 4 256
    kill_protect
    files "/mnt/source/unseen$round" 4 256
    rm -r "/mnt/source/captured$round"
    start_protect "$SOURCE" "$TARGET" --mark-every never
done

for round in 1 2; do
    step "killed while the source is frozen, round $round"
    kill_while_frozen
    comes_back 30 || fail "the source stays frozen after protect was killed"
    start_protect "$SOURCE" "$TARGET" --mark-every never
done

step "killed while it stops"
kill -INT "$PROTECT_PID"
sleep 0.05
kill_protect
start_protect "$SOURCE" "$TARGET" --mark-every never

last_mark_and_compare
