"""Compares our descriptions of OPI's messages with those of PyPI's pydpu: names, numbers, types, enums and methods."""

import importlib
import subprocess
import sys
import tempfile

from google.protobuf import descriptor_pb2

FILES = {
    "common": "opicommon",
    "frontend_nvme": "frontend_nvme",
    "frontend_virtio_blk": "frontend_virtio_blk",
    "backend_aio": "backend_aio",
    "backend_null": "backend_null",
    "backend_malloc": "backend_malloc",
    "backend_nvme": "backend_nvme",
    "middleend_qos_volume": "middleend_qos_volume",
    "middleend_encryption": "middleend_encryption",
}


def fields(message, prefix, into):
    name = f"{prefix}.{message.name}"
    into[name] = {
        (f.name, f.number, f.type, f.label, f.type_name, f.proto3_optional,
         message.oneof_decl[f.oneof_index].name if f.HasField("oneof_index") else "")
        for f in message.field
    }
    for nested in message.nested_type:
        fields(nested, name, into)
    for enum in message.enum_type:
        into[f"{name}.{enum.name}"] = {(v.name, v.number) for v in enum.value}


def describe(file):
    found = {}
    for message in file.message_type:
        fields(message, file.package, found)
    for enum in file.enum_type:
        found[f"{file.package}.{enum.name}"] = {(v.name, v.number) for v in enum.value}
    for service in file.service:
        found[f"{file.package}.{service.name}"] = {
            (m.name, m.input_type, m.output_type, m.client_streaming, m.server_streaming) for m in service.method
        }
    return found


def main(protos):
    with tempfile.NamedTemporaryFile() as output:
        subprocess.run(
            ["protoc", f"--proto_path={protos}", f"--descriptor_set_out={output.name}"]
            + [f"opi/{name}.proto" for name in FILES],
            check=True,
        )
        ours = descriptor_pb2.FileDescriptorSet.FromString(output.read())
    count = 0
    for file in ours.file:
        theirs = descriptor_pb2.FileDescriptorProto()
        module = FILES[file.name.removeprefix("opi/").removesuffix(".proto")]
        importlib.import_module(f"pydpu.proto.v1.{module}_pb2").DESCRIPTOR.CopyToProto(theirs)
        mine, other = describe(file), describe(theirs)
        assert mine.keys() == other.keys(), (file.name, mine.keys() ^ other.keys())
        for name in mine:
            assert mine[name] == other[name], (name, mine[name] ^ other[name])
            count += len(mine[name])
    print(f"{count} fields, values and methods are the same")


main(sys.argv[1])
