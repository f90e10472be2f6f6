import GRPCCore
import OPI
import SwiftProtobuf

/// `MallocVolumeService`: each method is one of the bridge's.
struct MallocVolumesService: OPIMallocVolumeService.SimpleServiceProtocol {
  let bridge: Bridge

  func createMallocVolume(request: OPICreateMallocVolumeRequest, context: ServerContext) async throws -> OPIMallocVolume
  {
    guard request.hasMallocVolume else { throw RPCError.missing("malloc_volume") }
    return try await bridge.create(request.mallocVolume, id: request.mallocVolumeID, idField: "malloc_volume_id")
  }

  func deleteMallocVolume(
    request: OPIDeleteMallocVolumeRequest, context: ServerContext
  ) async throws -> Google_Protobuf_Empty {
    try await bridge.delete(OPIMallocVolume.self, request.name, allowMissing: request.allowMissing)
    return Google_Protobuf_Empty()
  }

  func updateMallocVolume(request: OPIUpdateMallocVolumeRequest, context: ServerContext) async throws -> OPIMallocVolume
  {
    guard request.hasMallocVolume else { throw RPCError.missing("malloc_volume") }
    return try await bridge.update(
      request.mallocVolume, mask: request.hasUpdateMask ? request.updateMask : nil, allowMissing: request.allowMissing)
  }

  func listMallocVolumes(
    request: OPIListMallocVolumesRequest, context: ServerContext
  ) async throws -> OPIListMallocVolumesResponse {
    let page = try await bridge.list(
      OPIMallocVolume.self, size: request.pageSize, token: request.pageToken)
    return OPIListMallocVolumesResponse.with {
      $0.mallocVolumes = page.resources
      $0.nextPageToken = page.next
    }
  }

  func getMallocVolume(request: OPIGetMallocVolumeRequest, context: ServerContext) async throws -> OPIMallocVolume {
    try await bridge.get(OPIMallocVolume.self, request.name)
  }

  func statsMallocVolume(
    request: OPIStatsMallocVolumeRequest, context: ServerContext
  ) async throws -> OPIStatsMallocVolumeResponse {
    let stats = try await bridge.statistics(OPIMallocVolume.self, request.name)
    return OPIStatsMallocVolumeResponse.with { $0.stats = stats }
  }
}
