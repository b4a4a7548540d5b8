#!/bin/sh
# Sourced in the initramfs when the root's device is there: from here on its writes are recorded. Without this the machine boots all the
# same, and the volume is compared.
/usr/bin/afterwrite attach || warn "afterwrite could not attach: the volume will be compared"
