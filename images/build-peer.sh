#!/bin/bash
# Builds the peer: Debian's kernel and an initramfs with the NVMe over TCP initiator and target, nvme-cli, fio and
# e2fsprogs. Tests boot it in QEMU to have Linux itself at the other end of a wire.
#
#   images/build-peer.sh [--force]
#
# Result: ~/.cache/ycloud/images/peer-initrd and peer-kernel. The initramfs runs /script, which a test adds to it as a
# second cpio archive behind the first, and powers off when that ends.

here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
# shellcheck source=images/lib.sh
source "$here/lib.sh"

NAME=peer-initrd
MODULES=(virtio_pci virtio_net virtio_blk crc32c_generic crc32c-intel ext4 nvme-tcp nvmet nvmet-tcp null_blk configfs virtio-rng)
PROGRAMS=(nvme fio mke2fs)

key="$(input_key "$here/lib.sh" "$here/build-peer.sh" <(command -v "${PROGRAMS[@]}" | xargs sha256sum))"
[[ "${1:-}" != --force ]] || rm -f -- "$IMAGE_CACHE/$NAME.key"
[[ -s "$IMAGE_CACHE/peer-kernel" ]] || rm -f -- "$IMAGE_CACHE/$NAME.key"
begin_build "$NAME" "$key"
require cpio=cpio gzip=gzip apt-get=apt nvme=nvme-cli fio=fio mke2fs=e2fsprogs /bin/busybox=busybox-static

depends() { apt-cache depends "linux-image-$IMAGE_ARCH" 2>/dev/null | sed -n 's/.*Depends: \(linux-image-.*\)/\1/p' | head -1; }
kernel_package="$(depends)"
if [[ -z "$kernel_package" ]]; then
  progress "refreshing the package lists"
  apt-get -qq update
  kernel_package="$(depends)"
fi
[[ -n "$kernel_package" ]] || fail "apt knows no linux-image-$IMAGE_ARCH: this needs Debian 12 or later"
progress "downloading $kernel_package"
mkdir -p "$WORK/packages" "$WORK/root"
download() { (cd "$WORK/packages" && apt-get -qq -o APT::Sandbox::User=root download "$kernel_package"); }
download || { apt-get -qq update && download; } || fail "cannot download the package $kernel_package"
dpkg-deb -x "$WORK/packages/$kernel_package"_*.deb "$WORK/root"

progress "making the initramfs"
release="${kernel_package#linux-image-}"
modules_root="$WORK/root"
[[ -d "$modules_root/lib/modules" ]] || modules_root="$WORK/root/usr"
modules_folder="$modules_root/lib/modules/$release"
(cd "$modules_root" && /bin/busybox depmod -b . "$release")

initramfs="$WORK/initramfs"
mkdir -p "$initramfs"/{bin,sbin,etc/nvme,dev,proc,sys,run,tmp,root,mnt,lib/modules,usr/bin}
install -m 755 /bin/busybox "$initramfs/bin/busybox"
while read -r applet; do
  [[ "$applet" == busybox ]] || ln -s busybox "$initramfs/bin/$applet"
done < <(/bin/busybox --list)
for program in "${PROGRAMS[@]}"; do
  file="$(readlink -f "$(command -v "$program")")"
  rm -f "$initramfs/bin/$program"
  install -m 755 "$file" "$initramfs/bin/$program"
  # With every library that it loads, at the paths where its loader looks.
  while read -r library; do
    mkdir -p "$initramfs$(dirname "$library")"
    [[ -e "$initramfs$library" ]] || cp -L "$library" "$initramfs$library"
  done < <(ldd "$file" | grep -oE '/[^ ]+' | sort -u)
done
echo "root:x:0:0:root:/root:/bin/sh" >"$initramfs/etc/passwd"
echo "127.0.0.1 localhost" >"$initramfs/etc/hosts"
cat >"$initramfs/init" <<'INIT'
#!/bin/sh
export PATH=/bin:/sbin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mount -t tmpfs tmpfs /tmp
for module in /lib/modules/*.ko; do insmod "$module" 2>/dev/null; done
mount -t configfs none /sys/kernel/config
ip link set lo up
ip addr add 10.0.2.15/24 dev eth0
ip link set eth0 up
ip route add default via 10.0.2.2
echo "peer: up after $(cut -d' ' -f1 /proc/uptime) s"
sh /script
echo "peer: script ended with $?"
poweroff -f
INIT
chmod 755 "$initramfs/init"

install_modules "$modules_folder" "$initramfs/lib/modules" "${MODULES[@]}"
(cd "$initramfs" && find . -print0 | sort -z | cpio --quiet --null -o -H newc -R 0:0 | gzip -1n >"$WORK/initrd")
# The kernel looks for the next archive at a multiple of four bytes.
truncate -s %512 "$WORK/initrd"
mv -f -- "$WORK/root/boot/vmlinuz-$release" "$IMAGE_CACHE/peer-kernel"
finish_build "$NAME" "$key" "$WORK/initrd"
