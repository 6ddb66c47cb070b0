#!/bin/sh
# The boot loader's files of a Fedora host with two kernels and a rescue entry. The kernels and initial RAM disks are
# empty files: nothing boots from them.
set -eu
id=5fd5f2a0c1d94b6c9a6f3f7d0a0b1c2d # the entries keep the machine-id of the installation, whatever it is later
arch=$(uname -m)
options='root=UUID=6f1c9a52-5b0e-4d0c-8f31-7c4b2f0e9d11 ro rootflags=subvol=root rhgb quiet'
. /usr/lib/os-release

mkdir -p /boot/loader/entries /boot/grub2 /etc/kernel /etc/default
entry() { # version, kernel file, initrd file, extra
    cat >"/boot/loader/entries/$id-$1.conf" <<END
title $NAME ($2) $VERSION
version $2
linux /boot/vmlinuz-$2
initrd /boot/initramfs-$2.img$3
options $options$4
grub_users \$grub_users
grub_arg --unrestricted
grub_class fedora
END
    : >"/boot/vmlinuz-$2"
    : >"/boot/initramfs-$2.img"
}
new=6.19.8-200.fc$VERSION_ID.$arch
old=6.18.5-200.fc$VERSION_ID.$arch
entry "$new" "$new" ' $tuned_initrd' ' $tuned_params'
entry "$old" "$old" ' $tuned_initrd' ' $tuned_params'
entry 0-rescue "0-rescue-$id" '' ''

echo "$options" >/etc/kernel/cmdline
cat >/etc/default/grub <<'END'
GRUB_TIMEOUT=5
GRUB_DISTRIBUTOR="$(sed 's, release .*$,,g' /etc/system-release)"
GRUB_DEFAULT=saved
GRUB_DISABLE_SUBMENU=true
GRUB_TERMINAL_OUTPUT="console"
GRUB_CMDLINE_LINUX="rootflags=subvol=root rhgb quiet"
GRUB_DISABLE_RECOVERY="true"
GRUB_ENABLE_BLSCFG=true
END
grub2-editenv /boot/grub2/grubenv create
grub2-editenv /boot/grub2/grubenv set "saved_entry=$id-$new" boot_success=1
