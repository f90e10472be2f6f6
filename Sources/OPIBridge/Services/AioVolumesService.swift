import GRPCCore
import OPI
import SwiftProtobuf

/// `AioVolumeService`: each method is one of the bridge's.
struct AioVolumesService: OPIAioVolumeService.SimpleServiceProtocol {
  let bridge: Bridge

  func createAioVolume(request: OPICreateAioVolumeRequest, context: ServerContext) async throws -> OPIAioVolume {
    guard request.hasAioVolume else { throw RPCError.missing("aio_volume") }
    return try await bridge.create(request.aioVolume, id: request.aioVolumeID, idField: "aio_volume_id")
  }

  func deleteAioVolume(
    request: OPIDeleteAioVolumeRequest, context: ServerContext
  ) async throws -> Google_Protobuf_Empty {
    try await bridge.delete(OPIAioVolume.self, request.name, allowMissing: request.allowMissing)
    return Google_Protobuf_Empty()
  }

  func updateAioVolume(request: OPIUpdateAioVolumeRequest, context: ServerContext) async throws -> OPIAioVolume {
    guard request.hasAioVolume else { throw RPCError.missing("aio_volume") }
    return try await bridge.update(
      request.aioVolume, mask: request.hasUpdateMask ? request.updateMask : nil, allowMissing: request.allowMissing)
  }

  func listAioVolumes(
    request: OPIListAioVolumesRequest, context: ServerContext
  ) async throws -> OPIListAioVolumesResponse {
    let page = try await bridge.list(
      OPIAioVolume.self, size: request.pageSize, token: request.pageToken)
    return OPIListAioVolumesResponse.with {
      $0.aioVolumes = page.resources
      $0.nextPageToken = page.next
    }
  }

  func getAioVolume(request: OPIGetAioVolumeRequest, context: ServerContext) async throws -> OPIAioVolume {
    try await bridge.get(OPIAioVolume.self, request.name)
  }

  func statsAioVolume(
    request: OPIStatsAioVolumeRequest, context: ServerContext
  ) async throws -> OPIStatsAioVolumeResponse {
    let stats = try await bridge.statistics(OPIAioVolume.self, request.name)
    return OPIStatsAioVolumeResponse.with { $0.stats = stats }
  }
}
