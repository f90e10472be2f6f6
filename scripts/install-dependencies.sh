#!/bin/bash
# Installs the Debian packages that building, testing and running ycloud need: only those that are missing. A second run
# asks dpkg once and is done.
#
# usage: scripts/install-dependencies.sh [--list]
set -euo pipefail

packages=(
  # Building: the headers of io_uring, OpenSSL and zlib, Go for the Kubernetes control plane, protoc for `make protos`.
  liburing-dev libssl-dev zlib1g-dev protobuf-compiler golang-go golang-github-modern-go-reflect2-dev dpkg-dev
  # The simulated servers.
  qemu-utils seabios ipxe-qemu
  # The local cloud: database, DHCP, network, file systems, keys.
  etcd-server etcd-client dnsmasq-base iproute2 iputils-ping xfsprogs e2fsprogs openssl openssh-client kmod
  # Images and seed disks.
  mmdebstrap dosfstools mtools fdisk grub-common busybox-static cpio zstd
  # BMCs, other people's servers and clients in the tests, measurements, documentation.
  ipmitool openipmi socat curl jq fio libnbd-bin nbdkit nvme-cli python3-venv python3-yaml
)
case $(dpkg --print-architecture) in
  amd64) packages+=(qemu-system-x86 ovmf grub-pc-bin grub-efi-amd64-bin) ;;
  arm64) packages+=(qemu-system-arm qemu-efi-aarch64 grub-efi-arm64-bin) ;;
  *) echo "install-dependencies: only amd64 and arm64 are supported" >&2 && exit 1 ;;
esac
# kubectl also comes from other vendors' packages, which conflict with Debian's.
command -v kubectl >/dev/null || packages+=(kubernetes-client)

if [[ ${1:-} == --list ]]; then
  printf '%s\n' "${packages[@]}"
  exit 0
fi
[[ $# -eq 0 ]] || { echo "install-dependencies: unknown argument '$1'" >&2 && exit 1; }

# dpkg-query fails when it does not know one of the names, and prints the others all the same.
installed=$(dpkg-query -W -f '${Package} ${db:Status-Abbrev}\n' "${packages[@]}" 2>/dev/null || true)
missing=()
for package in "${packages[@]}"; do
  grep -qF "$package ii" <<<"$installed" || missing+=("$package")
done

if ((${#missing[@]} > 0)); then
  if ((EUID != 0)); then
    echo "install-dependencies: root is needed to install: ${missing[*]}" >&2
    exit 1
  fi
  echo "installing ${#missing[@]} packages: ${missing[*]}"
  # The packages' own services must not start: the local cloud runs its own etcd with its own ports and keys.
  guard=/usr/sbin/policy-rc.d
  if [[ ! -e $guard ]]; then
    trap 'rm -f "$guard"' EXIT
    printf '#!/bin/sh\nexit 101\n' >"$guard"
    chmod +x "$guard"
  fi
  export DEBIAN_FRONTEND=noninteractive
  apt-get -qq update
  apt-get -qq -y -o Dpkg::Use-Pty=0 install --no-install-recommends "${missing[@]}"
  for service in etcd openipmi; do
    for package in "${missing[@]}"; do
      if [[ $package == "$service"* ]] && command -v systemctl >/dev/null; then
        systemctl --quiet disable "$service" 2>/dev/null || true
      fi
    done
  done
fi

# A disk whose data plane starts again while the server's firmware runs is found again by QEMU 9.1 and newer only. Where
# the release has an older one (Debian 12), its backports have a newer.
qemu_release() { dpkg-query -W -f '${Version}' "$1" 2>/dev/null | sed 's/^[0-9]*://; s/+.*//'; }
case $(dpkg --print-architecture) in
  amd64) qemu=qemu-system-x86 ;;
  arm64) qemu=qemu-system-arm ;;
esac
if dpkg --compare-versions "$(qemu_release $qemu)" lt 9.1; then
  # shellcheck source=/dev/null
  . /etc/os-release
  suite=${VERSION_CODENAME:-}-backports
  list=/etc/apt/sources.list.d/ycloud-backports.list
  if [[ ${ID:-} == debian && $EUID -eq 0 ]]; then
    echo "installing $qemu from $suite ($(qemu_release $qemu) is older than 9.1)"
    if ! apt-cache policy | grep -qF "n=$suite"; then
      # The same mirror that the release itself comes from.
      # shellcheck disable=SC2016
      mirror=$(apt-get indextargets --format '$(SITE) $(CODENAME) $(COMPONENT)' 'Identifier: Packages' |
        awk -v release="$VERSION_CODENAME" '$2 == release && $3 == "main" { print $1; exit }')
      key=/usr/share/keyrings/debian-archive-keyring.gpg
      [[ -e $key ]] && key="[signed-by=$key] " || key=
      echo "deb $key${mirror:-http://deb.debian.org/debian} $suite main" >"$list"
      if ! apt-get -qq update; then
        rm -f "$list"
        apt-get -qq update
      fi
    fi
    DEBIAN_FRONTEND=noninteractive apt-get -qq -y -o Dpkg::Use-Pty=0 -t "$suite" install --no-install-recommends \
      "$qemu" qemu-utils || true
  fi
  if dpkg --compare-versions "$(qemu_release $qemu)" lt 9.1; then
    echo "install-dependencies: $qemu is older than 9.1 and no newer one was found; a server whose softdpu is restarted" \
      "while its firmware runs will have to be reset" >&2
  fi
fi

if ! command -v swift >/dev/null; then
  echo "install-dependencies: there is no 'swift' in PATH; install a Swift toolchain, 6.2 or newer (swift.org/install)" >&2
  exit 1
fi
