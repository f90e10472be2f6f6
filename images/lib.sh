# shellcheck shell=bash
# Common parts of the image builders. Sourced, not run.
#
# A disk is put together from plain files: no loop device, no mount, no block device. The layout is the same for every
# image, so that one file boots under BIOS and under UEFI:
#
#   partition 1   1 MiB   bios_grub   GRUB's core image for BIOS (absent on arm64)
#   partition 2   ESP     FAT         GRUB for UEFI
#   partition 3   rest    ext4        root or data

set -euo pipefail
export LC_ALL=C PATH="$PATH:/usr/sbin:/sbin"

IMAGE_CACHE="${YCLOUD_IMAGE_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/ycloud/images}"
IMAGE_ARCH="$(dpkg --print-architecture)"
STARTED_SECONDS=$SECONDS
# Where GRUB looks for its configuration, when it has none inside.
GRUB_PREFIX="(,gpt2)/grub"
# File systems and the partition table carry fixed identifiers and times, so the same input gives the same image.
export SOURCE_DATE_EPOCH="${SOURCE_DATE_EPOCH:-1700000000}"

case "$IMAGE_ARCH" in
amd64)
  EFI_TARGET=x86_64-efi
  EFI_FILE=BOOTX64.EFI
  SERIAL_CONSOLE=ttyS0
  ;;
arm64)
  EFI_TARGET=arm64-efi
  EFI_FILE=BOOTAA64.EFI
  SERIAL_CONSOLE=ttyAMA0
  ;;
*)
  echo "images: no image is defined for the architecture $IMAGE_ARCH (amd64 and arm64 are)" >&2
  exit 1
  ;;
esac

# progress TEXT: one line with the seconds since the script started.
progress() { printf '[%4ds] %s\n' "$((SECONDS - STARTED_SECONDS))" "$*" >&2; }

fail() {
  printf '%s: %s\n' "${0##*/}" "$*" >&2
  exit 1
}

# require TOOL=PACKAGE...: every tool must be there; the message names all packages that are missing.
require() {
  local pair missing=()
  for pair in "$@"; do
    if [[ "${pair%%=*}" == /* ]]; then
      [[ -e "${pair%%=*}" ]] || missing+=("${pair#*=}")
    else
      command -v "${pair%%=*}" >/dev/null || missing+=("${pair#*=}")
    fi
  done
  ((${#missing[@]} == 0)) || fail "missing programs; run: apt-get install --no-install-recommends ${missing[*]}"
}

# require_boot_tools: what the functions below use.
require_boot_tools() {
  local modules=("/usr/lib/grub/$EFI_TARGET/moddep.lst=grub-efi-$IMAGE_ARCH-bin")
  [[ "$IMAGE_ARCH" != amd64 ]] || modules+=("/usr/lib/grub/i386-pc/moddep.lst=grub-pc-bin")
  require grub-mkimage=grub-common sfdisk=fdisk mkfs.vfat=dosfstools mcopy=mtools mke2fs=e2fsprogs \
    qemu-img=qemu-utils "${modules[@]}"
}

# input_key FILE...: a digest of the builder's inputs.
input_key() {
  { echo "$IMAGE_ARCH" "${YCLOUD_DEBIAN_MIRROR:-}" && cat -- "$@"; } | sha256sum | cut -c1-32
}

# begin_build NAME KEY: leaves the script with success when NAME was already built from the same inputs; otherwise
# takes the lock and makes a work folder (WORK) beside the result, on the same file system, for an atomic rename.
begin_build() {
  local name=$1 key=$2
  mkdir -p "$IMAGE_CACHE"
  exec 9>"$IMAGE_CACHE/.$name.lock"
  if ! flock --nonblock 9; then
    progress "$name is being built by another process; waiting for it"
    flock 9
  fi
  if [[ -s "$IMAGE_CACHE/$name" && "$(cat "$IMAGE_CACHE/$name.key" 2>/dev/null)" == "$key" ]]; then
    progress "$name is up to date: $IMAGE_CACHE/$name"
    exit 0
  fi
  # The lock is ours: folders left by a build that was killed belong to nobody.
  rm -rf -- "$IMAGE_CACHE/.$name.work."*
  WORK="$(mktemp -d "$IMAGE_CACHE/.$name.work.XXXXXX")"
  trap 'rm -rf -- "$WORK"' EXIT
  trap 'exit 130' INT
  trap 'exit 143' TERM HUP
}

# finish_build NAME KEY FILE: the old image is replaced in one step; the key is written last, so a crash in between
# only costs another build.
finish_build() {
  local name=$1 key=$2 file=$3
  rm -f -- "$IMAGE_CACHE/$name.key"
  sync -- "$file"
  mv -f -- "$file" "$IMAGE_CACHE/$name"
  printf '%s\n' "$key" >"$IMAGE_CACHE/$name.key"
  progress "$name: $(stat -c %s "$IMAGE_CACHE/$name") bytes, $(du -k "$IMAGE_CACHE/$name" | cut -f1) KiB on disk, in $IMAGE_CACHE"
}

# install_modules FROM TO MODULE...: copies kernel modules, unpacked and numbered in the order of loading: dependencies
# first, as FROM/modules.dep lists them from right to left.
install_modules() {
  local from=$1 to=$2 module line file target index number=100
  local -a files
  local -A seen=()
  shift 2
  for module in "$@"; do
    line="$(grep -E "/${module//[-_]/[-_]}\.ko(\.[a-z]+)?:" "$from/modules.dep")" ||
      { progress "the kernel has no module $module (built in)"; continue; }
    read -ra files <<<"${line/:/ }"
    for ((index = ${#files[@]} - 1; index >= 0; index--)); do
      file="${files[index]}"
      [[ -z "${seen[$file]:-}" ]] || continue
      seen[$file]=1
      target="$to/$number-$(basename "$file" | sed 's/\.ko.*/.ko/')"
      case "$file" in
      *.xz) xz -dc "$from/$file" >"$target" ;;
      *.zst) zstd -qdc "$from/$file" >"$target" ;;
      *) cp "$from/$file" "$target" ;;
      esac
      number=$((number + 1))
    done
  done
}

# little_endian WIDTH VALUE: the bytes of an unsigned integer.
little_endian() {
  local width=$1 value=$2 index
  for ((index = 0; index < width; index++)); do
    # shellcheck disable=SC2059  # the format is the byte
    printf "\\x$(printf '%02x' $((value >> (8 * index) & 255)))"
  done
}

# write_at FILE OFFSET: overwrites bytes of FILE with stdin.
write_at() { dd of="$1" bs=64K seek="$2" iflag=fullblock oflag=seek_bytes conv=notrunc status=none; }

# write_sparse FILE OFFSET: the same where FILE has only zeros: zeros in stdin stay holes.
write_sparse() { dd of="$1" bs=64K seek="$2" iflag=fullblock oflag=seek_bytes conv=notrunc,sparse status=none; }

# partition_disk FILE SIZE_MIB ESP_MIB: creates a sparse FILE with the table described above and sets ESP_START,
# MAIN_START and MAIN_SECTORS (512-byte sectors).
partition_disk() {
  local file=$1 size_mib=$2 esp_mib=$3
  ESP_START=4096
  MAIN_START=$((ESP_START + esp_mib * 2048))
  # The last MiB is left to the backup table.
  MAIN_SECTORS=$((size_mib * 2048 - MAIN_START - 2048))
  truncate -s "${size_mib}M" "$file"
  sfdisk --quiet "$file" <<TABLE
label: gpt
label-id: 59434C4F-5544-4000-8000-000000000000
first-lba: 2048
start=2048, size=2048, type=21686148-6449-6E6F-744E-656564454649, uuid=59434C4F-5544-4000-8000-000000000001, name=bios
start=$ESP_START, size=$((esp_mib * 2048)), type=C12A7328-F81F-11D2-BA4B-00A0C93EC93B, uuid=59434C4F-5544-4000-8000-000000000002, name=esp
start=$MAIN_START, size=$MAIN_SECTORS, type=0FC63DAF-8483-4772-8E79-3D69D8477DE4, uuid=59434C4F-5544-4000-8000-000000000003, name=main
TABLE
}

# make_esp DISK ESP_MIB GRUB_CONFIG MODULES...: writes the ESP with GRUB for UEFI. Further files are put there by
# esp_put before install_esp copies it into the disk.
make_esp() {
  local esp_mib=$1 config=$2
  shift 2
  ESP_IMAGE="$WORK/esp.img"
  rm -f -- "$ESP_IMAGE"
  mkfs.vfat -n ESP -i 59434C44 -C "$ESP_IMAGE" $((esp_mib * 1024)) >/dev/null
  grub-mkimage -O "$EFI_TARGET" -p "$GRUB_PREFIX" -c "$config" -o "$WORK/grub.efi" "$@"
  mmd -i "$ESP_IMAGE" ::/EFI ::/EFI/BOOT
  mcopy -i "$ESP_IMAGE" "$WORK/grub.efi" "::/EFI/BOOT/$EFI_FILE"
}

# install_bios_grub DISK GRUB_CONFIG MODULES...: what grub-bios-setup does, on a file. The boot sector learns the LBA of
# the core image; the first sector of the core image (diskboot) learns where the rest of it lies.
install_bios_grub() {
  local disk=$1 config=$2 core_start=2048 core="$WORK/core.img" boot="$WORK/boot.img"
  shift 2
  [[ "$IMAGE_ARCH" == amd64 ]] || return 0
  grub-mkimage -O i386-pc -p "$GRUB_PREFIX" -c "$config" -o "$core" biosdisk "$@"
  (($(stat -c %s "$core") <= 2048 * 512)) || fail "GRUB's core image does not fit into its partition"
  cp /usr/lib/grub/i386-pc/boot.img "$boot"
  little_endian 8 $core_start | write_at "$boot" $((0x5c))
  little_endian 8 $((core_start + 1)) | write_at "$core" $((0x1f4))
  # Only the code: the disk's signature and the protective partition entry follow at 440.
  head -c 440 "$boot" | write_at "$disk" 0
  write_at "$disk" $((core_start * 512)) <"$core"
}
