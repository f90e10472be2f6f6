import GRPCCore
import OPI
import SwiftProtobuf

/// `ycloud.storage.v1.VolumeService`: what the storage API of OPI has no words for.
struct VolumesService: YCVolumeService.SimpleServiceProtocol {
  let bridge: Bridge

  func createVolume(request: YCCreateVolumeRequest, context: ServerContext) async throws -> YCVolume {
    guard request.hasVolume else { throw RPCError.missing("volume") }
    return try await bridge.createVolume(request.volume, id: request.volumeID, parent: request.parent)
  }

  func deleteVolume(
    request: YCDeleteVolumeRequest, context: ServerContext
  ) async throws -> Google_Protobuf_Empty {
    try await bridge.deleteVolume(request.name, allowMissing: request.allowMissing)
    return Google_Protobuf_Empty()
  }

  func getVolume(request: YCGetVolumeRequest, context: ServerContext) async throws -> YCVolume {
    try await bridge.getVolume(request.name)
  }

  func listVolumes(request: YCListVolumesRequest, context: ServerContext) async throws -> YCListVolumesResponse {
    let (volumes, next) =
      request.parent.isEmpty
      ? try await bridge.list(YCVolume.self, size: request.pageSize, token: request.pageToken)
      : try await bridge.volumes(store: request.parent, size: request.pageSize, token: request.pageToken)
    return YCListVolumesResponse.with {
      $0.volumes = volumes
      $0.nextPageToken = next
    }
  }

  func growVolume(request: YCGrowVolumeRequest, context: ServerContext) async throws -> YCVolume {
    try await bridge.growVolume(request.name, capacity: request.capacityBytes)
  }

  func snapshotVolume(request: YCSnapshotVolumeRequest, context: ServerContext) async throws -> YCVolume {
    try await bridge.snapshotVolume(request.name, id: request.snapshotID)
  }

  func cloneVolume(request: YCCloneVolumeRequest, context: ServerContext) async throws -> YCVolume {
    try await bridge.cloneVolume(request.name, id: request.cloneID)
  }

  func snapshotFiles(
    request: YCSnapshotFilesRequest, context: ServerContext
  ) async throws -> YCSnapshotFilesResponse {
    try await bridge.snapshotFiles(request)
  }

  func listStores(request: YCListStoresRequest, context: ServerContext) async throws -> YCListStoresResponse {
    let page = try await bridge.stores(size: request.pageSize, token: request.pageToken)
    return YCListStoresResponse.with {
      $0.stores = page.stores
      $0.nextPageToken = page.next
    }
  }

  func getTarget(request: YCGetTargetRequest, context: ServerContext) async throws -> YCTarget {
    let version = try await bridge.targetVersion()
    return YCTarget.with { $0.version = version }
  }
}
