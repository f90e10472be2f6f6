#!/bin/bash
# Builds the Debian 12 image: cloud-init, ssh by key, BIOS and UEFI.
#
#   images/build-debian.sh [--force]
#
# Result: ~/.cache/ycloud/images/debian-12.qcow2 (2 GiB virtual). A second run with the same inputs does nothing; --force
# takes new packages from the mirror. docs/images.md tells what is in the image and what was left out.
#
# Environment: YCLOUD_DEBIAN_MIRROR and YCLOUD_DEBIAN_SECURITY_MIRROR; without them the mirrors that this machine's apt
# uses for the same release. The image's own sources.list names the same ones.

here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
# shellcheck source=images/lib.sh
source "$here/lib.sh"

NAME=debian-12.qcow2
SUITE=bookworm
SIZE_MIB=2048
ESP_MIB=8
# mirror_of RELEASE: the first address that apt has for a release's main component.
mirror_of() {
  apt-get indextargets --format '$(REPO_URI) $(RELEASE) $(COMPONENT)' 'Created-By: Packages' |
    awk -v release="$1" '!found && $2 == release && $3 == "main" { print $1; found = 1 }'
}
MIRROR="${YCLOUD_DEBIAN_MIRROR:-$(mirror_of "$SUITE")}"
SECURITY_MIRROR="${YCLOUD_DEBIAN_SECURITY_MIRROR:-$(mirror_of "$SUITE-security")}"
if [[ -z $MIRROR || -z $SECURITY_MIRROR ]]; then
  echo "build-debian: apt knows no mirror of $SUITE and $SUITE-security; set YCLOUD_DEBIAN_MIRROR and YCLOUD_DEBIAN_SECURITY_MIRROR" >&2
  exit 1
fi
ROOT_PARTUUID=59434c4f-5544-4000-8000-000000000003
COMMAND_LINE="root=PARTUUID=$ROOT_PARTUUID ro console=tty0 console=$SERIAL_CONSOLE,115200 no_timer_check quiet"
PACKAGES=(
  "linux-image-cloud-$IMAGE_ARCH" initramfs-tools zstd
  systemd-sysv systemd-resolved systemd-timesyncd udev dbus libpam-systemd
  cloud-init cloud-guest-utils openssh-server sudo
  ca-certificates iproute2 iputils-ping kmod less nano netbase procps tzdata
)

key="$(input_key "$here/lib.sh" "$here/build-debian.sh" "$here"/debian/*)"
[[ "${1:-}" != --force ]] || rm -f -- "$IMAGE_CACHE/$NAME.key"
begin_build "$NAME" "$key"
require_boot_tools
require mmdebstrap=mmdebstrap
[[ $EUID == 0 ]] || fail "run this as root: the files of the image belong to several users"

root="$WORK/root"
progress "installing Debian 12 ($IMAGE_ARCH) from $MIRROR"
# --mode=root: no mount is left behind, mmdebstrap's own ones live in a private mount namespace. Documentation,
# translations and man pages stay out, licences (copyright) stay in.
mmdebstrap --quiet --mode=root --variant=minbase --architectures="$IMAGE_ARCH" \
  --aptopt='Acquire::Languages "none"' --aptopt='APT::Install-Recommends "false"' \
  --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/info/*' \
  --dpkgopt='path-exclude=/usr/share/locale/*' --dpkgopt='path-exclude=/usr/share/doc/*' \
  --dpkgopt='path-include=/usr/share/doc/*/copyright' \
  --include="$(IFS=, && echo "${PACKAGES[*]}")" \
  --essential-hook='mkdir -p "$1/etc/initramfs-tools/conf.d"' \
  --essential-hook="copy-in '$here/debian/initramfs-modules' /tmp" \
  --essential-hook='mv "$1/tmp/initramfs-modules" "$1/etc/initramfs-tools/modules"' \
  --essential-hook='printf "MODULES=list\nCOMPRESS=zstd\nCOMPRESSLEVEL=19\n" >"$1/etc/initramfs-tools/conf.d/ycloud"' \
  "$SUITE" "$root" \
  "deb $MIRROR $SUITE main" "deb $MIRROR $SUITE-updates main" "deb $SECURITY_MIRROR $SUITE-security main" \
  >"$WORK/mmdebstrap.log" 2>&1 || { tail -30 "$WORK/mmdebstrap.log" >&2; fail "mmdebstrap failed"; }

progress "configuring"
install -D -m 644 "$here/debian/cloud.cfg" "$root/etc/cloud/cloud.cfg.d/90_ycloud.cfg"
install -D -m 644 "$here/debian/sshd.conf" "$root/etc/ssh/sshd_config.d/50-ycloud.conf"
mkdir -p "$root/boot/grub"
sed -e "s|@COMMAND_LINE@|$COMMAND_LINE|" "$here/debian/grub.cfg" >"$root/boot/grub/grub.cfg"
echo "PARTUUID=$ROOT_PARTUUID / ext4 rw,errors=remount-ro 0 1" >"$root/etc/fstab"
cat >"$root/etc/apt/sources.list" <<SOURCES
deb $MIRROR $SUITE main
deb $MIRROR $SUITE-updates main
deb $SECURITY_MIRROR $SUITE-security main
SOURCES
# Empty, not absent: every server gets its own ID at its first boot, and systemd does not run its first-boot presets.
: >"$root/etc/machine-id"
rm -f "$root/var/lib/dbus/machine-id" "$root"/etc/ssh/ssh_host_*
echo localhost >"$root/etc/hostname"
ln -sf ../run/systemd/resolve/stub-resolv.conf "$root/etc/resolv.conf"
chroot "$root" systemctl --quiet enable systemd-networkd.service systemd-resolved.service
chroot "$root" systemctl --quiet set-default multi-user.target
while read -r unit _; do
  [[ -z "$unit" || "$unit" == \#* ]] || chroot "$root" systemctl --quiet mask "$unit"
done <"$here/debian/units-off"
rm -rf "$root"/var/lib/apt/lists/* "$root"/var/cache/apt/*.bin "$root"/var/log/* "$root"/tmp/*
mkdir -p "$root/var/log/journal"

for link in vmlinuz initrd.img; do
  [[ -s "$root/$link" ]] || fail "the kernel package made no /$link; see $WORK/mmdebstrap.log"
done

progress "making the file system"
disk="$WORK/disk.raw"
partition_disk "$disk" "$SIZE_MIB" "$ESP_MIB"
# GRUB 2.06 does not know metadata_csum_seed and orphan_file.
mke2fs -q -t ext4 -b 4096 -m 1 -L root -U 59434c4f-5544-4000-8000-000000000006 \
  -O '^metadata_csum_seed,^orphan_file' \
  -E hash_seed=59434c4f-5544-4000-8000-000000000007,lazy_itable_init=0,lazy_journal_init=0 \
  -d "$root" "$WORK/root.img" $((MAIN_SECTORS / 2))k >/dev/null

progress "putting the disk together"
# The root file system has no GRUB modules: all that grub.cfg uses is in the core images.
grub_modules=(part_gpt ext2 normal configfile test echo search search_fs_uuid serial terminal reboot halt ls cat boot linux)
: >"$WORK/empty.cfg"
GRUB_PREFIX='(,gpt3)/boot/grub'
make_esp "$ESP_MIB" "$WORK/empty.cfg" "${grub_modules[@]}"
install_bios_grub "$disk" "$WORK/empty.cfg" "${grub_modules[@]}" linux16
write_sparse "$disk" $((ESP_START * 512)) <"$ESP_IMAGE"
write_sparse "$disk" $((MAIN_START * 512)) <"$WORK/root.img"
rm -rf -- "$root" "$WORK/root.img"

progress "compressing to qcow2"
qemu-img convert -q -f raw -O qcow2 -c -o compression_type=zstd,compat=1.1 -W "$disk" "$WORK/disk.qcow2"
finish_build "$NAME" "$key" "$WORK/disk.qcow2"
