import GRPCCore
import OPI
import SwiftProtobuf

/// `NullVolumeService`: each method is one of the bridge's.
struct NullVolumesService: OPINullVolumeService.SimpleServiceProtocol {
  let bridge: Bridge

  func createNullVolume(request: OPICreateNullVolumeRequest, context: ServerContext) async throws -> OPINullVolume {
    guard request.hasNullVolume else { throw RPCError.missing("null_volume") }
    return try await bridge.create(request.nullVolume, id: request.nullVolumeID, idField: "null_volume_id")
  }

  func deleteNullVolume(
    request: OPIDeleteNullVolumeRequest, context: ServerContext
  ) async throws -> Google_Protobuf_Empty {
    try await bridge.delete(OPINullVolume.self, request.name, allowMissing: request.allowMissing)
    return Google_Protobuf_Empty()
  }

  func updateNullVolume(request: OPIUpdateNullVolumeRequest, context: ServerContext) async throws -> OPINullVolume {
    guard request.hasNullVolume else { throw RPCError.missing("null_volume") }
    return try await bridge.update(
      request.nullVolume, mask: request.hasUpdateMask ? request.updateMask : nil, allowMissing: request.allowMissing)
  }

  func listNullVolumes(
    request: OPIListNullVolumesRequest, context: ServerContext
  ) async throws -> OPIListNullVolumesResponse {
    let page = try await bridge.list(
      OPINullVolume.self, size: request.pageSize, token: request.pageToken)
    return OPIListNullVolumesResponse.with {
      $0.nullVolumes = page.resources
      $0.nextPageToken = page.next
    }
  }

  func getNullVolume(request: OPIGetNullVolumeRequest, context: ServerContext) async throws -> OPINullVolume {
    try await bridge.get(OPINullVolume.self, request.name)
  }

  func statsNullVolume(
    request: OPIStatsNullVolumeRequest, context: ServerContext
  ) async throws -> OPIStatsNullVolumeResponse {
    let stats = try await bridge.statistics(OPINullVolume.self, request.name)
    return OPIStatsNullVolumeResponse.with { $0.stats = stats }
  }
}
