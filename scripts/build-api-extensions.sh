#!/bin/bash
# Builds the part of a present-day Kubernetes API server that keeps custom resources (apiextensions-apiserver), from the
# libraries and the Go compiler that Debian's unstable suite has, for scripts/check-kubernetes.sh.
#
# Debian packages the API server's libraries in each new version, but not kube-apiserver itself: its registries of the
# built-in objects are in no package. What is built here is the code that validates, prunes, defaults, stores, patches
# and watches custom resources. The packages are unpacked beside the result, never installed:
#
#   ${YCLOUD_CACHE:-~/.cache/ycloud}/api-extensions/<version>/bin/apiextensions-apiserver
#
# A second run finds the program and returns at once; remove the directory to build what the suite has by then.
#
# usage: scripts/build-api-extensions.sh [--print-directory]
set -euo pipefail

cache=${YCLOUD_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/ycloud}/api-extensions
suite=${YCLOUD_API_EXTENSIONS_SUITE:-sid}
work=$cache/.building
keyring=/usr/share/keyrings/debian-archive-keyring.gpg

fail() {
  printf 'build-api-extensions: %s\n' "$*" >&2
  exit 1
}
started=$SECONDS
say() { printf '[%4ds] api-extensions: %s\n' $((SECONDS - started)) "$*"; }

finished() {
  local found
  found=$(find "$cache" -maxdepth 1 -name '[0-9]*' -type d 2>/dev/null | sort -V | tail -n1)
  [[ -n $found && -x $found/bin/apiextensions-apiserver ]] && printf '%s\n' "$found"
}

# Apt with lists, settings and a (bare) machine of its own.
private_apt() {
  apt-get -qq -o "Dir::Etc::SourceList=$work/apt/sources.list" -o "Dir::Etc::SourceParts=$work/apt/parts" \
    -o Dir::Etc::Preferences=/dev/null -o "Dir::Etc::PreferencesParts=$work/apt/parts" \
    -o "Dir::State::Lists=$work/apt/lists" -o "Dir::State::status=$work/apt/status" -o "Dir::Cache=$work/apt/cache" \
    -o APT::Sandbox::User=root -o APT::Install-Recommends=false -o Acquire::Languages=none -o Acquire::Retries=3 \
    -o Dpkg::Use-Pty=0 "$@"
}

download() {
  mkdir -p "$work/apt/lists/partial" "$work/apt/cache/archives/partial" "$work/apt/parts"
  : >"$work/apt/status"
  local mirror
  # shellcheck disable=SC2016
  mirror=$(apt-get indextargets --format '$(SITE) $(COMPONENT)' 'Created-By: Packages' \
    | awk '$2 == "main" && $1 !~ /security/ { print $1; exit }')
  # A mirror may stand still: the date of its lists says nothing about what is built from it.
  echo "deb [signed-by=$keyring check-valid-until=no] ${mirror:?no Debian mirror is configured; add one to /etc/apt/sources.list} $suite main" \
    >"$work/apt/sources.list"
  private_apt update
  private_apt -y --download-only install golang-k8s-apiextensions-apiserver-dev golang-go >"$work/apt.log" 2>&1 || {
    tail -n 20 "$work/apt.log" >&2
    fail "the packages of '$suite' could not be downloaded"
  }
}

compile() {
  local package
  for package in "$work"/apt/cache/archives/golang*.deb; do
    dpkg-deb --fsys-tarfile "$package" | tar -x -C "$work/root" --no-same-owner \
      --wildcards './usr/share/gocode*' './usr/lib/go*' './usr/share/go-*' 2>/dev/null || true
  done
  export GOROOT=$work/root/usr/lib/go GOPATH=$work/root/usr/share/gocode GOCACHE=$work/gocache GOTMPDIR=$work
  export GO111MODULE=off GOFLAGS="" CGO_ENABLED=0 GOTOOLCHAIN=local
  local stamp=k8s.io/component-base/version
  "$GOROOT/bin/go" build -trimpath -o "$work/out/bin/apiextensions-apiserver" \
    -ldflags "-s -w -X $stamp.gitVersion=v$1 -X $stamp.gitTreeState=clean" k8s.io/apiextensions-apiserver \
    >"$work/compile.log" 2>&1 || {
    tail -n 30 "$work/compile.log" >&2
    fail "the Go compiler failed (output above)"
  }
  printf 'version=%s\nsuite=%s\ncompiler=%s\n' "$1" "$suite" "$("$GOROOT/bin/go" version)" >"$work/out/build-info"
}

if [[ ${1:-} == --print-directory ]]; then
  finished || fail "nothing was built yet"
  exit 0
fi
[[ $# -eq 0 ]] || fail "unknown argument '$1' (usage: build-api-extensions.sh [--print-directory])"

mkdir -p "$cache"
exec 9>"$cache/.lock"
flock 9

if [[ -z $(finished) ]]; then
  [[ -f $keyring ]] || fail "$keyring is missing (Debian's package debian-archive-keyring)"
  free_mib=$(df --output=avail -BM "$cache" | tail -n1 | tr -dc 0-9)
  ((free_mib >= 6144)) || fail "$cache has $free_mib MiB free; the build needs 6144 MiB"
  rm -rf "$work"
  mkdir -p "$work/root" "$work/out/bin"
  say "downloading the libraries and the Go compiler of '$suite' (350 MB)"
  download
  # The libraries count 0.36.4 where Kubernetes counts 1.36.4.
  package=$(find "$work/apt/cache/archives" -name 'golang-k8s-apiextensions-apiserver-dev_*.deb' -printf '%f\n')
  version=$(sed -E 's/^[^_]*_0\.([0-9.]+).*/1.\1/' <<<"$package")
  [[ $version =~ ^1\.[0-9]+\.[0-9]+$ ]] || fail "no version can be read from '$package'"
  say "compiling $version (about 4 minutes of processor time, once)"
  compile "$version"
  mv -T "$work/out" "$cache/$version"
  chmod -R u+w "$work"
  rm -rf "$work"
fi

result=$(finished)
say "v$(basename "$result") is in $result"
