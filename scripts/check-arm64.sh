#!/bin/bash
# Compiles the project for arm64 on an amd64 machine, and runs tests of it on an emulated arm64 machine: Debian's kernel
# with pages of 16 KiB, so that nothing passes that counts on pages of 4 KiB.
#
# The toolchain is Debian's: one root directory for the machine's own architecture with the Swift compiler, one for
# arm64 with the Swift and C libraries and the kernel, both of the suite that has Swift 6.2 or newer (unstable). They are
# made once, by mmdebstrap, 6 GiB in all, and nothing of them is installed:
#
#   ${YCLOUD_CACHE:-~/.cache/ycloud}/arm64/{build,target}
#
# usage: scripts/check-arm64.sh [FILTER]     FILTER: which tests to run, a regular expression for `swift test --filter`
set -euo pipefail

cd "$(dirname "$0")/.."
project=$PWD
cache=${YCLOUD_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/ycloud}/arm64
suite=${YCLOUD_ARM64_SUITE:-sid}
scratch=$project/.build/arm64
triple=aarch64-unknown-linux-gnu
# Where Debian's package has its toolchain.
swift=usr/libexec/swift
# What needs neither other people's programs nor a control plane nor a machine inside the emulated one.
filter=${1:-"^($(paste -sd'|' <<'END'
JSONTests
JSONRPCTests
DPUTests
TelemetryTests
IaaSTests
BareMetalTests
SoftDPUTests\.(BlockDevice|DeviceActivity|Metrics|BlockRequest|Crypto|HostileGuest|Life|MemoryPages)Tests
SoftDPUTests\.(NVMf|VhostUserMessage|BlockConfiguration)Tests
KubernetesTests\.(Backoff|CacheStore|Kubeconfig|Object|Quantity|WatchDecoder)Tests
StorageTests\.(SHA256|UploadAuthorization|VolumePlan|VolumeSimulation)
END
))"}

fail() {
  printf 'check-arm64: %s\n' "$*" >&2
  exit 1
}
started=$SECONDS
say() { printf '[%4ds] arm64: %s\n' $((SECONDS - started)) "$*"; }

[[ $EUID == 0 ]] || fail "run this as root: it makes root directories and enters one"
[[ $(dpkg --print-architecture) == amd64 ]] || fail "this is for amd64 machines; on arm64 'make test' is the check"
missing=()
for tool in mmdebstrap=mmdebstrap qemu-system-aarch64=qemu-system-arm readelf=binutils cpio=cpio; do
  command -v "${tool%=*}" >/dev/null || missing+=("${tool#*=}")
done
if ((${#missing[@]} > 0)); then
  say "installing ${missing[*]}"
  DEBIAN_FRONTEND=noninteractive apt-get -qq -y -o Dpkg::Use-Pty=0 install --no-install-recommends "${missing[@]}"
fi

# make_root NAME ARCHITECTURE VARIANT PACKAGE...
make_root() {
  local name=$1 architecture=$2 variant=$3 mirror keyring=/usr/share/keyrings/debian-archive-keyring.gpg
  shift 3
  # shellcheck disable=SC2016
  mirror=$(apt-get indextargets --format '$(SITE) $(COMPONENT)' 'Created-By: Packages' \
    | awk '$2 == "main" && $1 !~ /security/ { print $1; exit }')
  rm -rf "$cache/.$name"
  # A mirror may stand still: the date of its lists says nothing about what is compiled with it.
  mmdebstrap --quiet --mode=root --architectures="$architecture" --variant="$variant" \
    --include="$(IFS=, && echo "$*")" --aptopt='APT::Install-Recommends "false"' \
    --aptopt='Acquire::Languages "none"' --dpkgopt='path-exclude=/usr/share/doc/*' \
    --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
    --customize-hook='rm -rf "$1"/var/cache/apt/archives/*.deb' "$suite" "$cache/.$name" \
    "deb [signed-by=$keyring check-valid-until=no] ${mirror:?no Debian mirror is configured; add one to /etc/apt/sources.list} $suite main" \
    >"$cache/$name.log" 2>&1 || {
    tail -n 20 "$cache/$name.log" >&2
    fail "mmdebstrap failed"
  }
}

mkdir -p "$cache"
exec 9>"$cache/.lock"
flock 9
if [[ ! -d $cache/build ]]; then
  say "making the root directory with the compiler (3.3 GiB)"
  make_root build amd64 essential swiftlang git ca-certificates libc6-dev g++
  mv "$cache/.build" "$cache/build"
fi
if [[ ! -d $cache/target ]]; then
  say "making the root directory with the arm64 libraries (2 GiB)"
  # Unpacked, not configured: nothing of it has to run here for that. The compiler is there for the modules beside it.
  make_root target arm64 extract swiftlang libc6-dev libstdc++-15-dev liburing-dev libssl-dev zlib1g-dev \
    linux-image-arm64-16k busybox-static
  target=$cache/.target
  find "$target/$swift/bin" "$target/$swift/lib" -maxdepth 1 -type f -delete
  # The links that base-files would make, and the place where the compiler looks.
  for folder in bin lib sbin; do ln -sfn "usr/$folder" "$target/$folder"; done
  ln -sfn ../libexec/swift/lib/swift "$target/usr/lib/swift"
  mv "$target" "$cache/target"
fi
# Clang takes the newest GCC that it finds, also one that came as somebody's dependency without its C++ headers.
for folder in "$cache/target/usr/lib/gcc/aarch64-linux-gnu"/*; do
  [[ -d $cache/target/usr/include/c++/${folder##*/} ]] || rm -rf "$folder"
done
flock --unlock 9

# A Swift SDK of these directories, as they are seen from the inside.
bundle=$scratch/sdks/debian-arm64.artifactbundle
mkdir -p "$bundle/debian-arm64"
cat >"$bundle/info.json" <<'END'
{"schemaVersion": "1.0", "artifacts": {"debian-arm64": {
  "type": "swiftSDK", "version": "1.0", "variants": [{"path": "debian-arm64"}]}}}
END
cat >"$bundle/debian-arm64/swift-sdk.json" <<END
{"schemaVersion": "4.0", "targetTriples": {"$triple": {
  "sdkRootPath": "/target", "swiftResourcesPath": "/target/$swift/lib/swift", "toolsetPaths": ["toolset.json"]}}}
END
cat >"$bundle/debian-arm64/toolset.json" <<END
{"schemaVersion": "1.0", "rootPath": "/$swift/bin", "linker": {"path": "ld.lld"}, "swiftCompiler": {
  "extraCLIOptions": ["-use-ld=lld", "-Xclang-linker", "-fuse-ld=lld"]}}
END

# inside COMMAND...: runs it in the root directory with the compiler, which has the checkout at its own path, and the
# folders that git is configured to read repositories from. All mounts are of a namespace that goes with the command; what
# is unmounted outside meanwhile is unmounted there too, or it would be kept in use.
inside() {
  local folders
  folders=$(git config --get-regexp '^url\..*\.insteadof$' | sed -nE 's|^url\.(/.*)\.insteadof .*|\1|p' | sort -u)
  # shellcheck disable=SC2016
  root=$cache/build target=$cache/target project=$project folders=$folders home=$HOME swift=$swift \
    unshare --mount --pid --fork --propagation slave bash -euc '
      show() { mkdir -p "$root$2" && mount --bind "$1" "$root$2"; }
      show_file() { mkdir -p "$root${1%/*}" && : >>"$root$1" && mount --bind "$1" "$root$1"; }
      mount -t proc proc "$root/proc"
      mount --rbind /dev "$root/dev"
      show "$target" /target
      show "$project" "$project"
      for folder in $folders; do show "$folder" "$folder"; done
      for file in /etc/resolv.conf /etc/gitconfig "$home/.gitconfig"; do
        if [ -e "$file" ]; then show_file "$file"; fi
      done
      exec chroot "$root" env -i HOME="$home" PATH="/$swift/bin:/usr/bin:/bin" LC_ALL=C.UTF-8 \
        GIT_CONFIG_COUNT=1 GIT_CONFIG_KEY_0=safe.directory GIT_CONFIG_VALUE_0="*" \
        bash -euc "cd \"\$0\" && \"\$@\"" "$project" "$@"' _ "$@"
}

# Debian's compiler has its assertions on, and one of them fails at a closure in ObjectCache+Init.swift, whose type is
# written in two ways that mean the same after specialization: the verification between its passes is off.
build=(
  swift build -c release --swift-sdks-path "$scratch/sdks" --swift-sdk debian-arm64 --scratch-path "$scratch"
  --disable-dependency-cache -Xswiftc -Xfrontend -Xswiftc -sil-verify-none
)
# The versions that the rest of the checkout was built with.
[[ ! -f Package.resolved ]] || build+=(--disable-automatic-resolution)
say "compiling with $(inside swiftc --version | head -n1)"
for product in "--product ycloud" "--product bmctl" --build-tests; do
  # shellcheck disable=SC2086
  inside "${build[@]}" $product >"$scratch/build.log" 2>&1 || {
    grep -E 'error:' "$scratch/build.log" | sort -u | head -n 30 >&2
    fail "it does not compile for arm64 (log: $scratch/build.log)"
  }
done

results=$scratch/$triple/release
for program in ycloud bmctl; do
  [[ $(readelf -h "$results/$program") == *AArch64* ]] || fail "$results/$program is not for arm64"
done
say "ycloud and bmctl are compiled; making the emulated machine's files"

# The machine has no disk: its files are in memory, and come with the kernel.
files=$scratch/files
rm -rf "$files"
mkdir -p "$files"/{bin,dev,proc,sys,tmp,root,usr/lib} "$files$project"
ln -s usr/lib "$files/lib"
cp "$cache/target/usr/bin/busybox" "$files/bin/"
for program in ycloud bmctl ycloudPackageTests.xctest; do
  inside llvm-objcopy --strip-debug "$results/$program" "$scratch/stripped"
  mv "$scratch/stripped" "$files/root/$program"
done
# add_libraries FILE: copies what the program or library needs, and what that needs.
add_libraries() {
  local name found
  while read -r name; do
    [[ -e $files/usr/lib/$name ]] && continue
    found=$(find "$cache/target/$swift/lib/swift/linux" "$cache/target/usr/lib/aarch64-linux-gnu" -maxdepth 1 \
      -name "$name" -print -quit)
    [[ -n $found ]] || fail "$1 needs $name, which is not in $cache/target"
    cp -L "$found" "$files/usr/lib/$name"
    add_libraries "$files/usr/lib/$name"
  done < <(readelf -d "$1" | sed -nE 's/.*\(NEEDED\).*\[(.*)\]/\1/p')
}
for program in "$files"/root/*; do add_libraries "$program"; done
# The linker's own name for itself, and what the tests read of the checkout.
[[ -e $files/usr/lib/ld-linux-aarch64.so.1 ]] \
  || cp -L "$cache/target/usr/lib/aarch64-linux-gnu/ld-linux-aarch64.so.1" "$files/usr/lib/"
git ls-files -z Tests deploy examples docs | xargs -0 cp --parents -t "$files$project"
cat >"$files/init" <<'END'
#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin:/root HOME=/root LD_LIBRARY_PATH=/usr/lib LC_ALL=C.UTF-8
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev; mount -t tmpfs tmp /tmp
mkdir -p /dev/shm; mount -t tmpfs shm /dev/shm; ln -s /proc/self/fd /dev/fd
ifconfig lo 127.0.0.1 up
echo "the machine is $(uname -m), $(uname -r)"
sh /root/check
echo "the check ended with $?"
poweroff -f
END
# The emulated machine is slow, and histories of machines do not depend on a processor: a few are enough.
cat >"$files/root/check" <<END
export YCLOUD_SIMULATION_RUNS=300
ycloud --help >/dev/null && bmctl --help >/dev/null || exit 1
/root/ycloudPackageTests.xctest --testing-library swift-testing --no-parallel --filter '$filter'
END
chmod +x "$files/init"
(cd "$files" && find . | cpio --quiet -o -H newc) >"$scratch/files.cpio"
rm -rf "$files"
kernel=$(find "$cache/target" -maxdepth 5 -name 'vmlinuz*' -type f | sort -V | tail -n1)
[[ -n $kernel ]] || fail "$cache/target has no kernel"

say "running the tests on it"
timeout 1800 qemu-system-aarch64 -machine virt -cpu max -accel tcg,thread=multi -smp 2 -m 4096 -display none \
  -monitor none -net none -no-reboot -kernel "$kernel" -initrd "$scratch/files.cpio" \
  -append "console=ttyAMA0 quiet panic=-1" -serial stdio </dev/null >"$scratch/test.log" 2>&1 || true
sed -i 's/\x1b\[[0-9;]*m//g; s/\r$//' "$scratch/test.log"
grep -aqx 'the check ended with 0' "$scratch/test.log" && grep -aqE 'Test run with [1-9]' "$scratch/test.log" || {
  grep -aE -A8 'recorded an issue|Fatal error|Crash|the check ended' "$scratch/test.log" | head -n 60 >&2
  fail "tests failed, or the machine did (log: $scratch/test.log)"
}
say "$(grep -aE '^the machine is' "$scratch/test.log"): $(grep -aoE 'Test run with .*' "$scratch/test.log" | tail -n1)"
