"""Drives a bridge with other people's code: pydpu's classes and command line, and grpcio stubs of its descriptors."""

import subprocess
import sys

import grpc
from google.protobuf import field_mask_pb2, wrappers_pb2
from pydpu import storage
from pydpu.proto.v1 import (
    backend_aio_pb2 as aio,
    backend_aio_pb2_grpc as aio_grpc,
    backend_malloc_pb2 as malloc,
    backend_malloc_pb2_grpc as malloc_grpc,
    backend_null_pb2 as null,
    backend_null_pb2_grpc as null_grpc,
    backend_nvme_pb2 as remote,
    backend_nvme_pb2_grpc as remote_grpc,
    frontend_nvme_pb2 as nvme,
    frontend_nvme_pb2_grpc as nvme_grpc,
    frontend_virtio_blk_pb2 as virtio,
    frontend_virtio_blk_pb2_grpc as virtio_grpc,
    middleend_encryption_pb2 as encryption,
    middleend_encryption_pb2_grpc as encryption_grpc,
    middleend_qos_volume_pb2 as qos,
    middleend_qos_volume_pb2_grpc as qos_grpc,
    opicommon_pb2 as common,
)

address, file, port = sys.argv[1:]
channel = grpc.insecure_channel(address)


def refused(call, code, part=""):
    try:
        call()
    except grpc.RpcError as error:
        assert error.code() == code, (error.code(), error.details())
        assert part in error.details(), error.details()
        return
    raise AssertionError(f"expected {code}")


# Volumes, by stubs.
mallocs = malloc_grpc.MallocVolumeServiceStub(channel)
for number in range(7):
    request = malloc.CreateMallocVolumeRequest(
        malloc_volume_id=f"m{number}", malloc_volume=malloc.MallocVolume(block_size=512, blocks_count=2048))
    made = mallocs.CreateMallocVolume(request)
    assert made.name == f"mallocVolumes/m{number}" and made.uuid, made
    assert mallocs.CreateMallocVolume(request) == made
names, token = [], ""
while True:
    page = mallocs.ListMallocVolumes(malloc.ListMallocVolumesRequest(page_size=3, page_token=token))
    assert len(page.malloc_volumes) <= 3
    names += [volume.name for volume in page.malloc_volumes]
    token = page.next_page_token
    if not token:
        break
assert names == [f"mallocVolumes/m{number}" for number in range(7)], names
refused(lambda: mallocs.ListMallocVolumes(malloc.ListMallocVolumesRequest(page_size=-1)),
        grpc.StatusCode.INVALID_ARGUMENT, "page_size")
refused(lambda: mallocs.GetMallocVolume(malloc.GetMallocVolumeRequest(name="mallocVolumes/none")),
        grpc.StatusCode.NOT_FOUND, "mallocVolumes/none")
refused(lambda: mallocs.CreateMallocVolume(malloc.CreateMallocVolumeRequest(malloc_volume_id="x")),
        grpc.StatusCode.INVALID_ARGUMENT, "malloc_volume")
stats = mallocs.StatsMallocVolume(malloc.StatsMallocVolumeRequest(name="mallocVolumes/m0")).stats
assert stats.write_ops_count == 0

aios = aio_grpc.AioVolumeServiceStub(channel)
volume = aios.CreateAioVolume(aio.CreateAioVolumeRequest(
    aio_volume_id="file", aio_volume=aio.AioVolume(filename=file, block_size=4096)))
assert (volume.block_size, volume.blocks_count, volume.filename) == (4096, 256, file), volume

nulls = null_grpc.NullVolumeServiceStub(channel)
volume = nulls.CreateNullVolume(null.CreateNullVolumeRequest(
    null_volume=null.NullVolume(block_size=512, blocks_count=2048)))
assert volume.name.startswith("nullVolumes/"), volume
volume.blocks_count = 4096
assert nulls.UpdateNullVolume(null.UpdateNullVolumeRequest(
    null_volume=volume, update_mask=field_mask_pb2.FieldMask(paths=["blocks_count"]))).blocks_count == 4096
nulls.DeleteNullVolume(null.DeleteNullVolumeRequest(name=volume.name))
refused(lambda: nulls.DeleteNullVolume(null.DeleteNullVolumeRequest(name=volume.name)), grpc.StatusCode.NOT_FOUND)
nulls.DeleteNullVolume(null.DeleteNullVolumeRequest(name=volume.name, allow_missing=True))

# Limits and encryption.
limits = qos_grpc.MiddleendQosVolumeServiceStub(channel)
made = limits.CreateQosVolume(qos.CreateQosVolumeRequest(
    qos_volume_id="limit", qos_volume=qos.QosVolume(
        volume_name_ref="mallocVolumes/m1", limits=qos.Limits(max=common.QosLimit(rw_iops_kiops=3)))))
assert made.limits.max.rw_iops_kiops == 3, made
assert [q.name for q in limits.ListQosVolumes(qos.ListQosVolumesRequest(parent="volumes")).qos_volumes] \
    == ["qosVolumes/limit"]
crypto = encryption_grpc.MiddleendEncryptionServiceStub(channel)
made = crypto.CreateEncryptedVolume(encryption.CreateEncryptedVolumeRequest(
    encrypted_volume_id="secret", encrypted_volume=encryption.EncryptedVolume(
        volume_name_ref="mallocVolumes/m2", key=bytes(range(64)), cipher=common.ENCRYPTION_TYPE_AES_XTS_256)))
assert made.key == b"", made
refused(lambda: crypto.CreateEncryptedVolume(encryption.CreateEncryptedVolumeRequest(
    encrypted_volume_id="bad", encrypted_volume=encryption.EncryptedVolume(
        volume_name_ref="mallocVolumes/m3", key=b"topsecretkey", cipher=common.ENCRYPTION_TYPE_AES_XTS_256))),
    grpc.StatusCode.INVALID_ARGUMENT, "key")

# A disk of the server.
disks = virtio_grpc.FrontendVirtioBlkServiceStub(channel)
made = disks.CreateVirtioBlk(virtio.CreateVirtioBlkRequest(
    virtio_blk_id="disk", virtio_blk=virtio.VirtioBlk(
        volume_name_ref="encryptedVolumes/secret", pcie_id=common.PciEndpoint(
            port_id=wrappers_pb2.Int32Value(value=0), physical_function=wrappers_pb2.Int32Value(value=0),
            virtual_function=wrappers_pb2.Int32Value(value=1)))))
assert made.name == "virtioBlks/disk", made
refused(lambda: crypto.DeleteEncryptedVolume(encryption.DeleteEncryptedVolumeRequest(name="encryptedVolumes/secret")),
        grpc.StatusCode.FAILED_PRECONDITION, "virtioBlks/disk")

# NVMe, by pydpu's own classes.
subsystem = storage.NvmeSubsystem(nqn="nqn.2022-09.io.spdk:opitest1")
print(subsystem.create(address))
print(subsystem.update(address))
assert subsystem.get(address).spec.model_number == "OPI Model"
assert [s.name for s in subsystem.list(address).nvme_subsystems] == [subsystem.name]
namespace = storage.NvmeNamespace(subsystem=subsystem, volume="m0")
made = namespace.create(address)
assert made.spec.host_nsid == 1 and made.spec.uuid == "1b4e28ba-2fa1-11d2-883f-b9a761bde3fb", made
assert namespace.get(address).status.state == nvme.NvmeNamespaceStatus.STATE_ENABLED
namespace.stats(address)
assert len(namespace.list(address).nvme_namespaces) == 1
subsystem.stats(address)
frontend = nvme_grpc.FrontendNvmeServiceStub(channel)
listener = frontend.CreateNvmeController(nvme.CreateNvmeControllerRequest(
    parent=subsystem.name, nvme_controller_id="tcp", nvme_controller=nvme.NvmeController(spec=nvme.NvmeControllerSpec(
        trtype=common.NVME_TRANSPORT_TYPE_TCP, fabrics_id=common.FabricsEndpoint(
            traddr="127.0.0.1", trsvcid=port, adrfam=common.NVME_ADDRESS_FAMILY_IPV4)))))
assert listener.status.active, listener
refused(lambda: frontend.DeleteNvmeSubsystem(nvme.DeleteNvmeSubsystemRequest(name=subsystem.name)),
        grpc.StatusCode.FAILED_PRECONDITION)

# The same volume from the other side.
controller = storage.NvmeRemoteController(multipath=remote.NVME_MULTIPATH_MULTIPATH, hdgst=True, ddgst=True)
controller.create(address)
controller.update(address)
paths = remote_grpc.NvmeRemoteControllerServiceStub(channel)
path = paths.CreateNvmePath(remote.CreateNvmePathRequest(
    parent=controller.name, nvme_path_id="p1", nvme_path=remote.NvmePath(
        trtype=common.NVME_TRANSPORT_TYPE_TCP, traddr="127.0.0.1", fabrics=remote.FabricsPath(
            trsvcid=int(port), subnqn=subsystem.nqn, adrfam=common.NVME_ADDRESS_FAMILY_IPV4))))
found = paths.ListNvmeRemoteNamespaces(remote.ListNvmeRemoteNamespacesRequest(parent=controller.name))
assert len(found.nvme_remote_namespaces) == 1, found
name = found.nvme_remote_namespaces[0].name
assert paths.GetNvmeRemoteNamespace(remote.GetNvmeRemoteNamespaceRequest(name=name)).nsid == 1
paths.StatsNvmePath(remote.StatsNvmePathRequest(name=path.name))
refused(lambda: paths.DeleteNvmeRemoteController(remote.DeleteNvmeRemoteControllerRequest(name=controller.name)),
        grpc.StatusCode.FAILED_PRECONDITION)
paths.DeleteNvmePath(remote.DeleteNvmePathRequest(name=path.name))
controller.delete(address)

# The command line ends with 0 whatever happens, so its words count.
shown = subprocess.run(
    [sys.executable, "-m", "pydpu", "--address", address, "storage", "show"], capture_output=True, text=True)
print(shown.stdout[-500:], shown.stderr[-500:])

# And all of it away again.
frontend.DeleteNvmeController(nvme.DeleteNvmeControllerRequest(name=listener.name))
namespace.delete(address)
subsystem.delete(address)
disks.DeleteVirtioBlk(virtio.DeleteVirtioBlkRequest(name="virtioBlks/disk"))
crypto.DeleteEncryptedVolume(encryption.DeleteEncryptedVolumeRequest(name="encryptedVolumes/secret"))
limits.DeleteQosVolume(qos.DeleteQosVolumeRequest(name="qosVolumes/limit"))
aios.DeleteAioVolume(aio.DeleteAioVolumeRequest(name="aioVolumes/file"))
for number in range(7):
    mallocs.DeleteMallocVolume(malloc.DeleteMallocVolumeRequest(name=f"mallocVolumes/m{number}"))
assert not mallocs.ListMallocVolumes(malloc.ListMallocVolumesRequest()).malloc_volumes
print("all of it works")
