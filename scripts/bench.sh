#!/usr/bin/env bash
# Prints the project's figures, each beside the one to reach. Usage: scripts/bench.sh   (called by `make bench`)
set -euo pipefail
cd "$(dirname "$0")/.."

ycloud=$PWD/.build/release/ycloud
bmctl=$PWD/.build/release/bmctl
images=${YCLOUD_CACHE:-$HOME/.cache/ycloud}/images
cloud=$(mktemp -d /tmp/ycloud-bench.XXXXXX)
cleanup() { "$ycloud" down --dir "$cloud" --purge >/dev/null 2>&1 || true; rm -rf "$cloud"; }
trap cleanup EXIT

row() { printf '%-52s %14s   %s\n' "$1" "$2" "$3"; }
number() { awk "BEGIN { printf \"$2\", $1 }"; }

printf 'machine: %s, %s cores, load %s, accelerator %s\n\n' "$(uname -m)" "$(nproc)" "$(cut -d' ' -f1-3 /proc/loadavg)" \
  "$(grep -qE 'svm|vmx' /proc/cpuinfo && [ -w /dev/kvm ] && echo KVM || echo TCG)"
row "figure" "measured" "to reach"

# The data plane against qemu-storage-daemon, before anything else runs.
.build/release/vhost-bench compare --ycloud "$ycloud"
.build/release/vhost-bench queues --ycloud "$ycloud"
python3 Benchmarks/nbd.py "$ycloud"
.build/release/nvme-bench compare --ycloud "$ycloud"
.build/release/nvme-bench scale --ycloud "$ycloud"
python3 Benchmarks/clone.py "$ycloud"
python3 Benchmarks/group.py "$ycloud"

# The control plane with a thousand simulated hosts and machines.
.build/release/fleet-bench --ycloud "$ycloud" --repository .

"$ycloud" up --dir "$cloud" --name ycb0 --subnet 192.168.95.1/24 --hosts 2 --host-memory 1024 >"$cloud.up.log" 2>&1 ||
  { cat "$cloud.up.log"; exit 1; }
rm -f "$cloud.up.log"
export KUBECONFIG=$cloud/kubeconfig
"$bmctl" image import "$images/tiny.raw" --name tiny >/dev/null
"$bmctl" image import "$images/debian-12.qcow2" --name debian-12 >/dev/null

# boot NAME IMAGE SIZE: seconds from apply to the first answered ping, and the own share of them.
boot() {
  kubectl apply -f - >/dev/null <<YAML
apiVersion: iaas.yusur.io/v1
kind: BareMetalMachine
metadata: {name: $1}
spec:
  disks:
  - {name: root, bootOrder: 1, template: {size: $3, storageClassName: ycloud, source: {persistentVolumeClaim: {name: $2}}}}
  interfaces: [{name: eth0}]
  cloudInit: {userData: "#cloud-config\n"}
YAML
  "$bmctl" wait "$1" --for Running --timeout 600 >/dev/null
  total=$(kubectl get bmm "$1" -o jsonpath='{.status.timeline.totalSeconds}')
  own=$(kubectl get bmm "$1" -o jsonpath='{.status.timeline.ownSeconds}')
}

boot tiny-1 tiny 256Mi
row "tiny image, apply to ping (s)" "$(number "$total" %.1f)" "<= 15"
row "tiny image, own share (s)" "$(number "$own" %.2f)" "<= 2"
kubectl delete bmm tiny-1 --timeout 120s >/dev/null

boot debian-1 debian-12 8Gi
row "Debian 12 with cloud-init, apply to ping (s)" "$(number "$total" %.1f)" "<= 120"
row "Debian 12 with cloud-init, own share (s)" "$(number "$own" %.2f)" "<= 3"

# One host with a machine, one without: what the roles cost when nothing happens.
roles() { pgrep -f "$cloud" | while read -r pid; do
  if [ "$(readlink "/proc/$pid/exe")" = "$(readlink -f "$ycloud")" ]; then echo "$pid"; fi; done; }
ticks() { for pid in $(roles); do awk '{ print $14 + $15 }' "/proc/$pid/stat"; done | awk '{ n += $1 } END { print n + 0 }'; }
writes() { kubectl get --raw /metrics | awk '/^apiserver_request_total\{/ && /verb="(POST|PUT|PATCH|DELETE|APPLY)"/ &&
  !/resource="(leases|subjectaccessreviews|tokenreviews)"/ { n += $NF } END { print n + 0 }'; }
sleep 30
before_writes=$(writes); before=$(ticks); sleep 10; after=$(ticks); after_writes=$(writes)
row "idle 10 s: roles' CPU (% of a core)" "$(number "($after - $before) / $(getconf CLK_TCK) * 10" %.2f)" "<= 2"
row "idle 10 s: writes to the API server but leases" "$((after_writes - before_writes))" "0"
# The guest's own memory, which softdpu maps to serve its disks, is the server's and grows with what the guest reads: it
# is shared memory, and shown by itself.
rollup() { for pid in $(roles); do awk -v key="$1:" '$1 == key { print $2 }' "/proc/$pid/smaps_rollup"; done |
  awk '{ n += $1 } END { print n + 0 }'; }
pss=$(rollup Pss) shared=$(rollup Pss_Shmem)
row "idle: roles' PSS together (MiB), $(roles | wc -l) processes" "$(number "($pss - $shared) / 1024" %.0f)" "<= 143 (150 MB)"
row "idle: memory of the guest that softdpu has mapped (MiB)" "$(number "$shared / 1024" %.0f)" ""

# A clone's time must not depend on the size: the same call that csi-controller makes, on written volumes of both sizes.
pool=$cloud/pool
for size in 256 2048; do
  dd if=/dev/urandom of="$pool/bench-source" bs=1M count=$((size / 2)) status=none
  truncate -s "${size}M" "$pool/bench-source"
  sync -f "$pool"
  best=$(for _ in 1 2 3 4 5; do s=$(date +%s%N); cp --reflink=always "$pool/bench-source" "$pool/bench-clone"; e=$(date +%s%N)
    rm "$pool/bench-clone"; echo $(((e - s) / 1000)); done | sort -n | head -1)
  rm "$pool/bench-source"
  row "clone of a $size MiB volume, half written (ms)" "$(number "$best / 1000" %.1f)" "<= 50"
done
