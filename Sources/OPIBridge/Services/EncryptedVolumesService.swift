import GRPCCore
import OPI
import SwiftProtobuf

/// `MiddleendEncryptionService`: each method is one of the bridge's.
struct EncryptedVolumesService: OPIMiddleendEncryptionService.SimpleServiceProtocol {
  let bridge: Bridge

  func createEncryptedVolume(request: OPICreateEncryptedVolumeRequest, context: ServerContext) async throws
    -> OPIEncryptedVolume
  {
    guard request.hasEncryptedVolume else { throw RPCError.missing("encrypted_volume") }
    return try await bridge.create(
      request.encryptedVolume, id: request.encryptedVolumeID, idField: "encrypted_volume_id")
  }

  func deleteEncryptedVolume(
    request: OPIDeleteEncryptedVolumeRequest, context: ServerContext
  ) async throws -> Google_Protobuf_Empty {
    try await bridge.delete(OPIEncryptedVolume.self, request.name, allowMissing: request.allowMissing)
    return Google_Protobuf_Empty()
  }

  func updateEncryptedVolume(request: OPIUpdateEncryptedVolumeRequest, context: ServerContext) async throws
    -> OPIEncryptedVolume
  {
    guard request.hasEncryptedVolume else { throw RPCError.missing("encrypted_volume") }
    return try await bridge.update(
      request.encryptedVolume, mask: request.hasUpdateMask ? request.updateMask : nil,
      allowMissing: request.allowMissing)
  }

  func listEncryptedVolumes(
    request: OPIListEncryptedVolumesRequest, context: ServerContext
  ) async throws -> OPIListEncryptedVolumesResponse {
    let page = try await bridge.list(
      OPIEncryptedVolume.self, size: request.pageSize, token: request.pageToken)
    return OPIListEncryptedVolumesResponse.with {
      $0.encryptedVolumes = page.resources
      $0.nextPageToken = page.next
    }
  }

  func getEncryptedVolume(request: OPIGetEncryptedVolumeRequest, context: ServerContext) async throws
    -> OPIEncryptedVolume
  {
    try await bridge.get(OPIEncryptedVolume.self, request.name)
  }

  func statsEncryptedVolume(
    request: OPIStatsEncryptedVolumeRequest, context: ServerContext
  ) async throws -> OPIStatsEncryptedVolumeResponse {
    let stats = try await bridge.statistics(OPIEncryptedVolume.self, request.name)
    return OPIStatsEncryptedVolumeResponse.with { $0.stats = stats }
  }
}
