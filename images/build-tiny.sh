#!/bin/bash
# Builds the tiny image: a disk that boots Debian's cloud kernel into busybox in a few seconds, for tests.
#
#   images/build-tiny.sh [--force]
#
# Result: ~/.cache/ycloud/images/tiny.raw (128 MiB virtual, about 20 MiB on disk). A second run with the same inputs
# does nothing. docs/images.md tells what the image does when it runs.

here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
# shellcheck source=images/lib.sh
source "$here/lib.sh"

NAME=tiny.raw
SIZE_MIB=128
ESP_MIB=32
MODULES=(virtio_pci virtio_net virtio_blk nls_ascii nls_cp437 vfat isofs button evdev virtio-rng)
COMMAND_LINE="console=$SERIAL_CONSOLE,115200 no_timer_check quiet loglevel=4 panic=5 random.trust_cpu=on mitigations=off"

key="$(input_key "$here/lib.sh" "$here/build-tiny.sh" "$here"/tiny/*)"
[[ "${1:-}" != --force ]] || rm -f -- "$IMAGE_CACHE/$NAME.key"
begin_build "$NAME" "$key"
require_boot_tools
require cpio=cpio gzip=gzip apt-get=apt

# fetch PACKAGE: unpacks a Debian package into WORK/root; the package lists are refreshed once if they do not know it.
fetch() {
  local package=$1
  mkdir -p "$WORK/packages" "$WORK/root"
  if ! (cd "$WORK/packages" && apt-get -qq -o APT::Sandbox::User=root download "$package" 2>"$WORK/apt.log"); then
    [[ $EUID == 0 ]] || fail "cannot download $package; run apt-get update as root first: $(tail -1 "$WORK/apt.log")"
    progress "refreshing the package lists"
    apt-get -qq update
    (cd "$WORK/packages" && apt-get -qq -o APT::Sandbox::User=root download "$package") ||
      fail "cannot download the package $package"
  fi
  dpkg-deb -x "$WORK/packages/$package"_*.deb "$WORK/root"
}

kernel_package="$(apt-cache depends "linux-image-cloud-$IMAGE_ARCH" 2>/dev/null | sed -n 's/.*Depends: \(linux-image-.*\)/\1/p' | head -1)"
if [[ -z "$kernel_package" ]]; then
  progress "refreshing the package lists"
  apt-get -qq update
  kernel_package="$(apt-cache depends "linux-image-cloud-$IMAGE_ARCH" | sed -n 's/.*Depends: \(linux-image-.*\)/\1/p' | head -1)"
fi
[[ -n "$kernel_package" ]] || fail "apt knows no linux-image-cloud-$IMAGE_ARCH: this needs Debian 12 or later"
progress "downloading $kernel_package and busybox-static"
fetch "$kernel_package"
fetch busybox-static

progress "making the initramfs"
release="${kernel_package#linux-image-}"
busybox="$WORK/root/bin/busybox"
[[ -x "$busybox" ]] || busybox="$WORK/root/usr/bin/busybox"
modules_root="$WORK/root"
[[ -d "$modules_root/lib/modules" ]] || modules_root="$WORK/root/usr"
modules_folder="$modules_root/lib/modules/$release"
(cd "$modules_root" && "$busybox" depmod -b . "$release")

initramfs="$WORK/initramfs"
mkdir -p "$initramfs"/{bin,sbin,etc/acpi/PWRF,dev,proc,sys,run,tmp,root,data,seed,lib/modules}
install -m 755 "$busybox" "$initramfs/bin/busybox"
while read -r applet; do
  [[ "$applet" == busybox || -e "$initramfs/bin/$applet" ]] || ln -s busybox "$initramfs/bin/$applet"
done < <("$busybox" --list)
ln -s ../bin/busybox "$initramfs/sbin/init"
ln -s bin/busybox "$initramfs/init"
ln -s ../proc/mounts "$initramfs/etc/mtab"
install -m 755 "$here"/tiny/{rc,network,lease,shutdown} "$initramfs/etc/"
install -m 755 "$here/tiny/power-button" "$initramfs/etc/acpi/PWRF/00000080"
sed "s/@CONSOLE@/$SERIAL_CONSOLE/" "$here/tiny/inittab" >"$initramfs/etc/inittab"
echo "root:x:0:0:root:/root:/bin/sh" >"$initramfs/etc/passwd"
echo "root:x:0:" >"$initramfs/etc/group"
echo "127.0.0.1 localhost" >"$initramfs/etc/hosts"
echo tiny >"$initramfs/etc/hostname"
echo "PRETTY_NAME=\"YCloud tiny image ($release)\"" >"$initramfs/etc/os-release"

install_modules "$modules_folder" "$initramfs/lib/modules" "${MODULES[@]}"
# shellcheck disable=SC2094
(cd "$initramfs" && find . -exec touch -h -d "@$SOURCE_DATE_EPOCH" {} + &&
  find . -print0 | sort -z | cpio --quiet --null --reproducible -o -H newc -R 0:0 | gzip -9n >"$WORK/initrd")

progress "putting the disk together"
# The configuration inside GRUB runs before its normal mode and needs no module of it: nothing waits for a key.
# For BIOS, linux16: GRUB's "linux" copies the kernel's whole run-time size (50 MiB) once more, byte by byte, which costs
# more than a second of an emulated processor.
grub_config() {
  printf '%s\n' "linux$1 (\$root)/vmlinuz $COMMAND_LINE" "initrd$1 (\$root)/initrd" boot
}
grub_config "" >"$WORK/grub.cfg"
grub_config 16 >"$WORK/grub-bios.cfg"
grub_modules=(part_gpt fat boot)
disk="$WORK/disk.raw"
partition_disk "$disk" "$SIZE_MIB" "$ESP_MIB"
make_esp "$ESP_MIB" "$WORK/grub.cfg" "${grub_modules[@]}" linux
mcopy -i "$ESP_IMAGE" "$WORK/root/boot/vmlinuz-$release" ::/vmlinuz
mcopy -i "$ESP_IMAGE" "$WORK/initrd" ::/initrd
mke2fs -q -t ext4 -b 4096 -m 0 -L YCLOUD-DATA -U 59434c4f-5544-4000-8000-000000000004 \
  -E hash_seed=59434c4f-5544-4000-8000-000000000005,lazy_itable_init=0,lazy_journal_init=0 \
  "$WORK/data.img" $((MAIN_SECTORS / 2))k >/dev/null
install_bios_grub "$disk" "$WORK/grub-bios.cfg" "${grub_modules[@]}" linux16
write_sparse "$disk" $((ESP_START * 512)) <"$ESP_IMAGE"
write_sparse "$disk" $((MAIN_START * 512)) <"$WORK/data.img"
finish_build "$NAME" "$key" "$disk"
