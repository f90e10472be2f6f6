#!/bin/sh
# Makes the Python environment with the peers that the tests run against (Redfish and IPMI servers and clients and the
# SPDK command line, a WebSocket client, all written by others) and prints its path. Does nothing where it is complete already.
#
#   scripts/test-venv.sh [DIR]     DIR defaults to $YCLOUD_TEST_VENV, then to ~/.cache/ycloud/venv
set -eu

directory=${1:-${YCLOUD_TEST_VENV:-${XDG_CACHE_HOME:-$HOME/.cache}/ycloud/venv}}
packages="sushy-tools==2.2.0 pyghmi==1.6.19 redfish==3.4.2 sushy==5.14.0 spdk==26.9 pydpu==0.2.1 websockets==15.0.1"
stamp="$directory/.packages"

if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$packages" ]; then
  echo "$directory"
  exit 0
fi

python3 -c 'import venv, ensurepip' 2>/dev/null || {
  echo "test-venv: python3-venv is missing; remedy: apt-get install python3-venv" >&2
  exit 1
}

# One maker at a time: parallel test runs wait for the first.
mkdir -p "$(dirname "$directory")"
exec 9>"$directory.lock"
flock 9
if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$packages" ]; then
  echo "$directory"
  exit 0
fi

echo "test-venv: installing $packages into $directory" >&2
[ -x "$directory/bin/python3" ] || python3 -m venv "$directory" >&2
# shellcheck disable=SC2086
"$directory/bin/pip" install --quiet --disable-pip-version-check $packages >&2
printf '%s' "$packages" >"$stamp"
echo "$directory"
