#!/usr/bin/env bash
# Writes Sources/OPI from protos/: messages and services as Swift. What it writes is committed, so that a build needs
# neither protoc nor its plug-ins.
set -euo pipefail
cd "$(dirname "$0")/.."
command -v protoc >/dev/null || { echo "protos: protoc is missing; remedy: apt-get install protobuf-compiler" >&2; exit 1; }

for plugin in protoc-gen-swift protoc-gen-grpc-swift-2; do
  echo "== $plugin"
  swift build -c release --product "$plugin"
done
plugins=$(swift build -c release --show-bin-path)
mapfile -t files < <(cd protos && find . -name '*.proto' -printf '%P\n' | sort)
rm -rf Sources/OPI
mkdir -p Sources/OPI
protoc --proto_path=protos \
  --plugin="$plugins/protoc-gen-swift" --plugin="$plugins/protoc-gen-grpc-swift-2" \
  --swift_out=Sources/OPI --swift_opt=Visibility=Package,UseAccessLevelOnImports=true,FileNaming=PathToUnderscores \
  --grpc-swift-2_out=Sources/OPI \
  --grpc-swift-2_opt=Visibility=Package,UseAccessLevelOnImports=true,FileNaming=PathToUnderscores \
  "${files[@]}"
echo "protos: $(find Sources/OPI -name '*.swift' | wc -l) files in Sources/OPI"
