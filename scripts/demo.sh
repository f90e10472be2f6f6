#!/usr/bin/env bash
# The main job on one machine: a local cloud, a real Debian image, and a server that boots from a clone of it.
# Usage: scripts/demo.sh [CLOUD_DIR]   (called by `make demo`, which has built everything before)
set -euo pipefail
cd "$(dirname "$0")/.."

cloud=${1:-$PWD/.ycloud}
ycloud=$PWD/.build/release/ycloud
bmctl=$PWD/.build/release/bmctl
image=${YCLOUD_CACHE:-$HOME/.cache/ycloud}/images/debian-12.qcow2
machine=bm-01
started=$SECONDS

say() { printf '\n\033[1m[%4d s]\033[0m %s\n' "$((SECONDS - started))" "$*"; }

say "Starting the cloud in $cloud"
"$ycloud" up --dir "$cloud" --host-memory "${YCLOUD_DEMO_MEMORY_MIB:-1024}"
export KUBECONFIG=$cloud/kubeconfig

if kubectl get persistentvolumeclaim debian-12 >/dev/null 2>&1; then
  say "The image volume debian-12 is already there"
else
  say "Importing the Debian 12 image as the volume debian-12"
  "$bmctl" image import "$image" --name debian-12
fi

# Who may log in: a key made for this cloud, handed to cloud-init through a Secret that the example refers to.
key=$cloud/ssh_ed25519
[ -f "$key" ] || ssh-keygen -q -t ed25519 -N '' -C ycloud-demo -f "$key"
userdata=$(printf '#cloud-config\nhostname: %s\nusers:\n- name: debian\n  sudo: ALL=(ALL) NOPASSWD:ALL\n  shell: /bin/bash\n  ssh_authorized_keys:\n  - %s\n' \
  "$machine" "$(cat "$key.pub")")
kubectl create secret generic bm-01-user-data --from-literal=userData="$userdata" --dry-run=client -o yaml | kubectl apply -f - >/dev/null

say "kubectl apply -f examples/bare-metal/bm-01.yaml"
kubectl apply -f examples/bare-metal/bm-01.yaml
"$bmctl" wait "$machine" --for Running --timeout 600

address=$(kubectl get baremetalmachine "$machine" -o jsonpath='{.status.addresses[0].address}')
say "Ping $address"
ping -c 3 -i 0.3 "$address"
say "ssh debian@$address (waits for the guest's ssh server)"
ssh_options=(-i "$key" -o StrictHostKeyChecking=no -o "UserKnownHostsFile=$cloud/known_hosts" -o LogLevel=ERROR -o BatchMode=yes -o ConnectTimeout=5)
for attempt in $(seq 1 60); do
  if ssh "${ssh_options[@]}" "debian@$address" 'echo "$(hostname): $(. /etc/os-release; echo "$PRETTY_NAME"), kernel $(uname -r), disk $(lsblk -dno SIZE /dev/vda | tr -d " ")"'; then break; fi
  [ "$attempt" -lt 60 ] || { echo "no ssh at $address after 60 tries; see: $bmctl console $machine" >&2; exit 1; }
  sleep 2
done

say "Timeline"
"$bmctl" timeline "$machine"
kubectl get baremetalmachine,baremetalhost,persistentvolumeclaim,volumeattachment
cat <<END

The cloud goes on running. To go on with:

  export KUBECONFIG=$KUBECONFIG PATH=$PWD/.build/release:\$PATH
  bmctl ssh $machine --user debian --identity $key
  bmctl console $machine            # leave with Ctrl-]
  kubectl delete baremetalmachine $machine

make down stops and removes all of it.
END
