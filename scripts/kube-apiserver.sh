#!/bin/bash
# kube-apiserver with custom resources of another version: takes the arguments of kube-apiserver, becomes it, and has
# apiextensions-apiserver serve apiextensions.k8s.io/v1 and iaas.yusur.io/v1 behind it, as an aggregated API server on
# a port of its own and in the same etcd. scripts/check-kubernetes.sh puts it, under the name kube-apiserver, into a
# directory with apiextensions-apiserver, kube-apiserver-core, and perhaps a file emulated-version with the older version
# that apiextensions-apiserver is to behave as.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
arguments=() etcd=() authority="" port="" log=""
for argument in "$@"; do
  case $argument in
  --client-ca-file=*) authority=${argument#*=} ;;
  --etcd-servers=* | --etcd-cafile=* | --etcd-certfile=* | --etcd-keyfile=*) etcd+=("$argument") ;;&
  --secure-port=*) port=${argument#*=} ;;&
  *) arguments+=("$argument") ;;
  esac
done
value() { printf '%s\n' "${etcd[@]}" | sed -n "s/^--etcd-$1=//p"; }

# Beside the certificates of whoever started this, and gone with them.
keys=$(mktemp -d "$(dirname "$authority")/extensions-XXXXXX")
log=$keys/log
curve=(-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 7)
openssl req -x509 "${curve[@]}" -keyout "$keys/ca.key" -out "$keys/ca.crt" -subj /CN=extensions \
  -addext keyUsage=critical,keyCertSign,cRLSign 2>/dev/null
issue() {
  openssl req -x509 "${curve[@]}" -CA "$keys/ca.crt" -CAkey "$keys/ca.key" -keyout "$keys/$1.key" -out "$keys/$1.crt" \
    -subj "$2" -addext subjectAltName=DNS:extensions.default.svc -addext basicConstraints=critical,CA:FALSE 2>/dev/null
}
issue server /CN=extensions
issue client /O=system:masters/CN=extensions
issue proxy /CN=front-proxy
cat "$authority" "$keys/ca.crt" >"$keys/clients.crt"
cat >"$keys/kubeconfig" <<END
apiVersion: v1
kind: Config
current-context: core
clusters: [{name: core, cluster: {server: "https://127.0.0.1:$port", insecure-skip-tls-verify: true}}]
users: [{name: extensions, user: {client-certificate: "$keys/client.crt", client-key: "$keys/client.key"}}]
contexts: [{name: core, context: {cluster: core, user: extensions}}]
END
own_port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')

# Written before kube-apiserver starts, so that it never serves these groups itself: without the label by which it knows
# its own entries, it leaves them alone.
export ETCDCTL_API=3 ETCDCTL_ENDPOINTS ETCDCTL_CACERT ETCDCTL_CERT ETCDCTL_KEY
ETCDCTL_ENDPOINTS=$(value servers) ETCDCTL_CACERT=$(value cafile) ETCDCTL_CERT=$(value certfile) ETCDCTL_KEY=$(value keyfile)
put() {
  local attempt
  for attempt in {1..30}; do
    etcdctl --dial-timeout=1s --command-timeout=2s put "$1" "$2" >/dev/null 2>&1 && return
    sleep 0.3
  done
  echo "kube-apiserver.sh: etcd does not answer" >&2
  exit 1
}
born='"creationTimestamp": "2026-01-01T00:00:00Z"'
put /registry/services/specs/default/extensions '{"kind": "Service", "apiVersion": "v1", "metadata": {
  "name": "extensions", "namespace": "default", "uid": "3f0c7c39-0000-4000-8000-000000000001", '"$born"'},
  "spec": {"type": "ExternalName", "externalName": "localhost", "sessionAffinity": "None"}}'
register() {
  put "/registry/apiregistration.k8s.io/apiservices/v1.$1" '{"kind": "APIService",
    "apiVersion": "apiregistration.k8s.io/v1", "metadata": {"name": "v1.'"$1"'", "uid": "'"$2"'", '"$born"'},
    "spec": {"group": "'"$1"'", "version": "v1", "groupPriorityMinimum": 16700, "versionPriority": 15,
    "caBundle": "'"$(base64 -w0 "$keys/ca.crt")"'",
    "service": {"namespace": "default", "name": "extensions", "port": '"$own_port"'}}}'
}
register apiextensions.k8s.io 3f0c7c39-0000-4000-8000-000000000002
register iaas.yusur.io 3f0c7c39-0000-4000-8000-000000000003

emulated=()
[[ ! -s $here/emulated-version ]] || emulated=("--emulated-version=kube=$(<"$here/emulated-version")")
# It reads from kube-apiserver at its start whom to trust, and is tried again until that answers. Both of these processes
# end with the one that started them. Their plugins and flow control need objects that an old kube-apiserver lacks.
extensions() {
  while true; do
    setpriv --pdeathsig KILL "$here/apiextensions-apiserver" "${etcd[@]}" "${emulated[@]}" \
      --bind-address=127.0.0.1 --secure-port="$own_port" --tls-cert-file="$keys/server.crt" \
      --tls-private-key-file="$keys/server.key" --kubeconfig="$keys/kubeconfig" \
      --authentication-kubeconfig="$keys/kubeconfig" --authorization-kubeconfig="$keys/kubeconfig" \
      --enable-priority-and-fairness=false \
      --disable-admission-plugins=MutatingAdmissionPolicy,ValidatingAdmissionPolicy >>"$log" 2>&1 || true
    sleep 0.3
  done
}
export -f extensions
export here keys log own_port
export etcd_arguments="${etcd[*]}" emulated_arguments="${emulated[*]}"
# shellcheck disable=SC2016
setpriv --pdeathsig KILL bash -c '
  read -ra etcd <<<"$etcd_arguments"
  read -ra emulated <<<"$emulated_arguments"
  extensions' </dev/null >/dev/null 2>&1 &

exec "$here/kube-apiserver-core" "${arguments[@]}" "--client-ca-file=$keys/clients.crt" \
  "--proxy-client-cert-file=$keys/proxy.crt" "--proxy-client-key-file=$keys/proxy.key" \
  "--requestheader-client-ca-file=$keys/ca.crt" --requestheader-allowed-names=front-proxy \
  --requestheader-username-headers=X-Remote-User --requestheader-group-headers=X-Remote-Group \
  --requestheader-extra-headers-prefix=X-Remote-Extra-
