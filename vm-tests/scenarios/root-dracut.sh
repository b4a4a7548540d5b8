#!/bin/sh
# As `root`, with an initramfs that dracut has made.
# kernels: 6.12
# disks: root=1G target=1G journal=1G
# debian: root
# initramfs: root.toml dracut
# boots-from: target
# runs: root.sh
# default: no
# timeout: 5400
# compare: root target
# fsck: target
