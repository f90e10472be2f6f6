import GRPCCore
import OPI
import SwiftProtobuf

/// `MiddleendQosVolumeService`: each method is one of the bridge's.
struct QosVolumesService: OPIMiddleendQosVolumeService.SimpleServiceProtocol {
  let bridge: Bridge

  func createQosVolume(request: OPICreateQosVolumeRequest, context: ServerContext) async throws -> OPIQosVolume {
    guard request.hasQosVolume else { throw RPCError.missing("qos_volume") }
    return try await bridge.create(request.qosVolume, id: request.qosVolumeID, idField: "qos_volume_id")
  }

  func deleteQosVolume(
    request: OPIDeleteQosVolumeRequest, context: ServerContext
  ) async throws -> Google_Protobuf_Empty {
    try await bridge.delete(OPIQosVolume.self, request.name, allowMissing: request.allowMissing)
    return Google_Protobuf_Empty()
  }

  func updateQosVolume(request: OPIUpdateQosVolumeRequest, context: ServerContext) async throws -> OPIQosVolume {
    guard request.hasQosVolume else { throw RPCError.missing("qos_volume") }
    return try await bridge.update(
      request.qosVolume, mask: request.hasUpdateMask ? request.updateMask : nil, allowMissing: request.allowMissing)
  }

  func listQosVolumes(
    request: OPIListQosVolumesRequest, context: ServerContext
  ) async throws -> OPIListQosVolumesResponse {
    let page = try await bridge.list(
      OPIQosVolume.self, size: request.pageSize, token: request.pageToken)
    return OPIListQosVolumesResponse.with {
      $0.qosVolumes = page.resources
      $0.nextPageToken = page.next
    }
  }

  func getQosVolume(request: OPIGetQosVolumeRequest, context: ServerContext) async throws -> OPIQosVolume {
    try await bridge.get(OPIQosVolume.self, request.name)
  }

  func statsQosVolume(
    request: OPIStatsQosVolumeRequest, context: ServerContext
  ) async throws -> OPIStatsQosVolumeResponse {
    let stats = try await bridge.statistics(OPIQosVolume.self, request.name)
    return OPIStatsQosVolumeResponse.with { $0.stats = stats }
  }
}
