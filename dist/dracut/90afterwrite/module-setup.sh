#!/bin/bash
# Puts afterwrite and its configuration into the initramfs, if a volume says `early = true`.

check() {
    require_binaries afterwrite || return 1
    afterwrite attach --list > /dev/null 2>&1 || return 255
}

install() {
    inst_binary afterwrite /usr/bin/afterwrite
    inst_simple /etc/afterwrite/config.toml
    # Before the root is checked and mounted.
    inst_hook pre-mount 05 "$moddir/attach.sh"
}
