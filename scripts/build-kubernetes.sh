#!/bin/bash
# Builds kube-apiserver and kube-controller-manager from Debian's source package `kubernetes`.
#
# Debian ships etcd and kubectl as binary packages but not the API server, so it is built once, without network
# access other than the machine's own Debian mirror, into a cache outside the checkout:
#
#   ${YCLOUD_CACHE:-~/.cache/ycloud}/kubernetes/<version>/bin/{kube-apiserver,kube-controller-manager}
#
# A second run finds the binaries and returns at once. The build happens in a directory beside the result and is
# renamed at the end, so an interrupted build leaves nothing that looks finished.
#
# usage: scripts/build-kubernetes.sh [--print-directory]
set -euo pipefail

version=1.20.2
cache=${YCLOUD_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/ycloud}/kubernetes
result=$cache/$version
work=$cache/.building-$version
programs=(kube-apiserver kube-controller-manager)
reflect2=/usr/share/gocode/src/github.com/modern-go/reflect2

fail() {
  printf 'build-kubernetes: %s\n' "$*" >&2
  exit 1
}

started=$SECONDS
say() { printf '[%4ds] kubernetes: %s\n' $((SECONDS - started)) "$*"; }

is_complete() {
  local program
  for program in "${programs[@]}"; do
    [[ -x $result/bin/$program ]] || return 1
  done
  [[ -f $result/build-info ]]
}

# Writes one deb-src line per mirror this machine is configured with for its own release. `indextargets` is apt's
# parsed view, so one-line and deb822 files, mirrors and local archives are all understood.
write_source_list() {
  local list=$1 codename keyring=/usr/share/keyrings/debian-archive-keyring.gpg options=""
  codename=$(. /etc/os-release && printf '%s' "${VERSION_CODENAME:-}")
  [[ -n $codename ]] || fail "/etc/os-release names no release; this script needs Debian 12"
  [[ -f $keyring ]] && options="[signed-by=$keyring] "
  apt-get indextargets --format '$(REPO_URI) $(RELEASE) $(COMPONENT)' 'Created-By: Packages' \
    | awk -v codename="$codename" -v options="$options" \
      '$2 == codename && $3 == "main" { print "deb-src " options $1 " " $2 " " $3 }' | sort -u >"$list"
  [[ -s $list ]] || fail "apt has no repository for '$codename main'; add one to /etc/apt/sources.list and run apt-get update"
}

# Downloads the source package with package lists of its own, so the machine's apt configuration stays as it is.
download_source() {
  local apt=$work/apt
  mkdir -p "$apt/lists/partial" "$apt/cache/archives/partial" "$apt/parts" "$work/download"
  write_source_list "$apt/sources.list"
  local options=(
    -qq
    -o "Dir::Etc::SourceList=$apt/sources.list" -o "Dir::Etc::SourceParts=$apt/parts"
    -o "Dir::State::Lists=$apt/lists" -o "Dir::Cache=$apt/cache"
    -o APT::Sandbox::User=root -o Acquire::Retries=3 -o Acquire::Languages=none
  )
  apt-get "${options[@]}" update
  (cd "$work/download" && apt-get "${options[@]}" source --download-only kubernetes)
}

# zz_generated.openapi.go is not part of the tarball.
generate_openapi() {
  go build -o "$work/openapi-gen" ./vendor/k8s.io/kube-openapi/cmd/openapi-gen
  local packages
  packages=$(
    grep -rl --include='*.go' '+k8s:openapi-gen=' cmd pkg plugin staging \
      | xargs -r -n1 dirname | sort -u \
      | grep -Ev '/(sample-[^/]*|code-generator|kube-openapi)(/|$)|/example' \
      | sed -e 's|^staging/src/|vendor/|' -e 's|^|k8s.io/kubernetes/|' | paste -sd, -
  )
  "$work/openapi-gen" --logtostderr --v=0 -i "$packages" -p k8s.io/kubernetes/pkg/generated/openapi \
    -O zz_generated.openapi -h hack/boilerplate/boilerplate.generatego.txt -r "$work/openapi-violations" \
    --output-base "$GOPATH/src" 2>"$work/openapi-gen.log" || {
    tail -n 20 "$work/openapi-gen.log" >&2
    fail "generating the OpenAPI definitions failed"
  }
  [[ -s pkg/generated/openapi/zz_generated.openapi.go ]] || fail "openapi-gen wrote no definitions"
}

compile() {
  local stamp=k8s.io/kubernetes/vendor/k8s.io/component-base/version targets=() program total done_count pid
  for program in "${programs[@]}"; do targets+=("./cmd/$program"); done
  local ldflags="-s -w -X $stamp.gitVersion=v$version -X $stamp.gitMajor=1 -X $stamp.gitMinor=20"
  ldflags+=" -X $stamp.gitTreeState=clean -X $stamp.buildDate=1970-01-01T00:00:00Z"
  total=$(go list -deps "${targets[@]}" | wc -l)
  mkdir -p "$work/bin"
  go build -v -trimpath -ldflags "$ldflags" -o "$work/bin/" "${targets[@]}" >"$work/compile.log" 2>&1 &
  pid=$!
  local next=$((SECONDS + 10))
  while kill -0 "$pid" 2>/dev/null; do
    if ((SECONDS >= next)); then
      done_count=$(wc -l <"$work/compile.log")
      say "compiled $done_count of about $total packages"
      next=$((SECONDS + 15))
    fi
    sleep 0.5
  done
  wait "$pid" || {
    grep -Ev '^[A-Za-z0-9_./-]+$' "$work/compile.log" | tail -n 30 >&2
    fail "the Go compiler failed (output above)"
  }
}

if [[ ${1:-} == --print-directory ]]; then
  printf '%s\n' "$result"
  exit 0
fi
[[ $# -eq 0 ]] || fail "unknown argument '$1' (usage: build-kubernetes.sh [--print-directory])"

if is_complete; then
  say "v$version is in $result"
  exit 0
fi

for tool in go apt-get dpkg-source flock; do
  command -v "$tool" >/dev/null || fail "'$tool' is missing; run scripts/install-dependencies.sh first"
done
[[ -d $reflect2 ]] \
  || fail "golang-github-modern-go-reflect2-dev is missing; run scripts/install-dependencies.sh first"

mkdir -p "$cache"
exec 9>"$cache/.lock"
if ! flock --nonblock 9; then
  say "another build is running; waiting for it"
  flock 9
  if is_complete; then
    say "v$version is in $result"
    exit 0
  fi
fi
free_mib=$(df --output=avail -BM "$cache" | tail -n1 | tr -dc 0-9)
((free_mib >= 4096)) || fail "$cache has $free_mib MiB free; the build needs 4096 MiB"

rm -rf "$work" "$result"
mkdir -p "$work"

say "downloading Debian's source package (34 MB)"
download_source

export GOPATH=$work/go GOCACHE=$work/gocache GO111MODULE=off GOFLAGS="" CGO_ENABLED=0 GOTMPDIR=$work
tree=$GOPATH/src/k8s.io/kubernetes
mkdir -p "$(dirname "$tree")"
say "unpacking"
dpkg-source --no-check -x "$work"/download/kubernetes_*.dsc "$tree" >"$work/unpack.log" 2>&1 || {
  tail -n 20 "$work/unpack.log" >&2
  fail "unpacking the source package failed"
}
cd "$tree"

# The vendored reflect2 predates Go 1.18 and crashes the API server at its first custom resource.
rm -rf vendor/github.com/modern-go/reflect2
cp -r "$reflect2" vendor/github.com/modern-go/reflect2

say "generating OpenAPI definitions"
generate_openapi

say "compiling ${programs[*]} (about 7 minutes of processor time, once)"
compile

cd "$cache"
stamped=$("$work/bin/kube-apiserver" --version)
[[ $stamped == "Kubernetes v$version" ]] || fail "the built API server calls itself '$stamped'"
mkdir -p "$work/out"
mv "$work/bin" "$work/out/bin"
{
  printf 'version=%s\n' "$version"
  printf 'source=%s\n' "$(basename "$work"/download/kubernetes_*.dsc)"
  printf 'compiler=%s\n' "$(go version)"
} >"$work/out/build-info"
mv -T "$work/out" "$result"
# Go's module cache rules do not apply in GOPATH mode, but be sure that the removal cannot stop at a read-only folder.
chmod -R u+w "$work"
rm -rf "$work"
say "v$version is ready in $result"
