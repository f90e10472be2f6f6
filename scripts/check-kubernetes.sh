#!/bin/bash
# Checks the custom resources, and the life of a machine, against a present-day API server's code: a local cloud whose
# custom resources are served by the apiextensions-apiserver of scripts/build-api-extensions.sh. The built-in objects
# stay with the kube-apiserver of scripts/build-kubernetes.sh.
#
# It leaves the programs in .build/kubernetes, where YCLOUD_KUBERNETES finds them for tests:
#
#   YCLOUD_KUBERNETES=$PWD/.build/kubernetes swift test -c release --skip-build --filter KubernetesTests
#
# usage: scripts/check-kubernetes.sh [VERSION...]   VERSION: an older one to emulate, such as 1.33; the newest if none
set -euo pipefail

cd "$(dirname "$0")/.."
ycloud=$PWD/.build/release/ycloud
bmctl=$PWD/.build/release/bmctl
programs=$PWD/.build/kubernetes
image=${YCLOUD_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/ycloud}/images/tiny.raw
work=$(mktemp -d -t ycloud-check-XXXXXX)
cloud=$work/cloud
started=$SECONDS
say() { printf '[%4ds] check-kubernetes: %s\n' $((SECONDS - started)) "$*"; }

fail() {
  printf 'check-kubernetes: %s\n' "$*" >&2
  tail -n 5 "$cloud"/*/extensions-*/log >&2 2>/dev/null || true
  exit 1
}

proxy=""
finish() {
  [[ -z $proxy ]] || kill "$proxy" 2>/dev/null || true
  "$ycloud" down --dir "$cloud" --purge >/dev/null 2>&1 || true
  rm -rf "$work"
}
trap finish EXIT

core=$(scripts/build-kubernetes.sh --print-directory)/bin
[[ -x $core/kube-apiserver ]] || fail "there is no kube-apiserver in $core; run 'make kubernetes' first"
scripts/build-api-extensions.sh
extensions=$(scripts/build-api-extensions.sh --print-directory)
mkdir -p "$programs"
install -m 755 scripts/kube-apiserver.sh "$programs/kube-apiserver"
ln -sfn "$core/kube-apiserver" "$programs/kube-apiserver-core"
ln -sfn "$core/kube-controller-manager" "$programs/kube-controller-manager"
ln -sfn "$extensions/bin/apiextensions-apiserver" "$programs/apiextensions-apiserver"

# send METHOD PATH [TYPE]: sends the body on standard input as the administrator; prints the answer's status and its
# body on one line. A warning of the server is a failure.
send() {
  local headers=$work/headers
  curl -sS --max-time 30 --unix-socket "$work/proxy" -X "$1" -H "Content-Type: ${3:-application/json}" \
    --data-binary @- -D "$headers" -w '\n%{http_code}' "http://localhost$2" >"$work/answer" || fail "$1 $2: no answer"
  if grep -qi '^warning:' "$headers"; then fail "$1 $2: $(grep -i '^warning:' "$headers")"; fi
  printf '%s ' "$(tail -n1 "$work/answer")"
  sed '$d' "$work/answer" | tr -d '\n'
}

# documents FILE: the YAML file's documents as JSON, one a line.
documents() {
  python3 -c 'import json, sys, yaml
for document in yaml.safe_load_all(open(sys.argv[1])):
    if document: print(json.dumps(document))' "$1"
}

check_definitions() {
  local file document name answer
  for file in deploy/crds/*.yaml; do
    while read -r document; do
      name=$(jq -r .metadata.name <<<"$document")
      # Once more, strictly: an unknown or repeated field is an error.
      answer=$(send PATCH "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/$name?fieldManager=check&force=true&fieldValidation=Strict" \
        application/apply-patch+yaml <<<"$document")
      [[ $answer == 200* ]] || fail "$name is refused: $answer"
      answer=$(jq -r '[.status.conditions[] | select(.status == "True") | .type] | sort | join(" ")' <<<"${answer#* }")
      [[ $answer == "Established NamesAccepted" ]] || fail "$name has the conditions: $answer"
    done < <(documents "$file")
  done
}

check_objects() {
  local file document kind plural answer objects=/apis/iaas.yusur.io/v1
  for file in examples/bare-metal/*.yaml; do
    while read -r document; do
      kind=$(jq -r .kind <<<"$document")
      case $kind in
      BareMetalMachine) plural=namespaces/default/baremetalmachines ;;
      BareMetalHost) plural=baremetalhosts ;;
      *) continue ;;
      esac
      answer=$(send POST "$objects/$plural?dryRun=All&fieldValidation=Strict" <<<"$document")
      [[ $answer == 201* ]] || fail "$file: a $kind is refused: $answer"
      # The old API server prunes in silence: this is what tells that the other one is asked.
      answer=$(jq '.spec.noSuchField = 1' <<<"$document" | send POST "$objects/$plural?dryRun=All&fieldValidation=Strict")
      [[ $answer == 400* && $answer == *"unknown field"* ]] || fail "an unknown field is not refused: $answer"
    done < <(documents "$file")
  done
  answer=$(jq -n '{apiVersion: "iaas.yusur.io/v1", kind: "BareMetalMachine", metadata: {name: "x"}, spec: {disks: 1}}' \
    | send POST "$objects/namespaces/default/baremetalmachines?dryRun=All")
  [[ $answer == 422* || $answer == 400* ]] || fail "a number where a list belongs is not refused: $answer"
}

check_machine() {
  "$bmctl" image import "$image" --name tiny >/dev/null
  jq -n '{apiVersion: "iaas.yusur.io/v1", kind: "BareMetalMachine", metadata: {name: "check"}, spec: {running: true,
    disks: [{name: "root", bootOrder: 1, template: {size: "256Mi", storageClassName: "ycloud",
      source: {persistentVolumeClaim: {name: "tiny"}}}}],
    interfaces: [{name: "eth0"}], cloudInit: {userData: "#cloud-config\n"}}}' | kubectl apply -f - >/dev/null
  "$bmctl" wait check --for Running --timeout 240 >/dev/null
  "$bmctl" stop check >/dev/null
  "$bmctl" wait check --for Stopped --timeout 120 >/dev/null
  kubectl delete baremetalmachine check --timeout 120s >/dev/null
  local left
  for _ in {1..60}; do
    left=$(kubectl get baremetalmachine,volumeattachment -A -o name; kubectl get pvc -o name | grep -v /tiny || true)
    [[ -n $left ]] || return 0
    sleep 0.5
  done
  fail "the deleted machine left: $left"
}

for version in "${@:-}"; do
  printf '%s' "$version" >"$programs/emulated-version"
  say "starting a cloud with the custom resources of $(basename "$extensions")${version:+, which behaves as $version}"
  # One name and network for all runs on a machine, which are none of the demo's and the tests'.
  YCLOUD_KUBERNETES=$programs "$ycloud" up --dir "$cloud" --name yck0 --hosts 1 --subnet 192.168.98.1/24 \
    --host-memory 128 >"$work/log" 2>&1 || { tail -n 20 "$work/log" >&2; fail "the cloud does not start"; }
  export KUBECONFIG=$cloud/kubeconfig
  kubectl proxy --unix-socket="$work/proxy" >/dev/null 2>&1 &
  proxy=$!
  for _ in {1..50}; do [[ -S $work/proxy ]] && break; sleep 0.1; done
  check_definitions
  say "the definitions are accepted, strictly"
  check_objects
  say "the examples are accepted, strictly; what is wrong is refused"
  check_machine
  say "a machine was booted, stopped and deleted"
  kill "$proxy" 2>/dev/null || true
  proxy=""
  "$ycloud" down --dir "$cloud" --purge >/dev/null
done
say "done"
