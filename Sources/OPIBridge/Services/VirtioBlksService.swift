import GRPCCore
import OPI
import SwiftProtobuf

/// `FrontendVirtioBlkService`: each method is one of the bridge's.
struct VirtioBlksService: OPIFrontendVirtioBlkService.SimpleServiceProtocol {
  let bridge: Bridge

  func createVirtioBlk(request: OPICreateVirtioBlkRequest, context: ServerContext) async throws -> OPIVirtioBlk {
    guard request.hasVirtioBlk else { throw RPCError.missing("virtio_blk") }
    return try await bridge.create(request.virtioBlk, id: request.virtioBlkID, idField: "virtio_blk_id")
  }

  func deleteVirtioBlk(
    request: OPIDeleteVirtioBlkRequest, context: ServerContext
  ) async throws -> Google_Protobuf_Empty {
    try await bridge.delete(OPIVirtioBlk.self, request.name, allowMissing: request.allowMissing)
    return Google_Protobuf_Empty()
  }

  func updateVirtioBlk(request: OPIUpdateVirtioBlkRequest, context: ServerContext) async throws -> OPIVirtioBlk {
    guard request.hasVirtioBlk else { throw RPCError.missing("virtio_blk") }
    return try await bridge.update(
      request.virtioBlk, mask: request.hasUpdateMask ? request.updateMask : nil, allowMissing: request.allowMissing)
  }

  func listVirtioBlks(
    request: OPIListVirtioBlksRequest, context: ServerContext
  ) async throws -> OPIListVirtioBlksResponse {
    let page = try await bridge.list(
      OPIVirtioBlk.self, size: request.pageSize, token: request.pageToken)
    return OPIListVirtioBlksResponse.with {
      $0.virtioBlks = page.resources
      $0.nextPageToken = page.next
    }
  }

  func getVirtioBlk(request: OPIGetVirtioBlkRequest, context: ServerContext) async throws -> OPIVirtioBlk {
    try await bridge.get(OPIVirtioBlk.self, request.name)
  }

  func statsVirtioBlk(
    request: OPIStatsVirtioBlkRequest, context: ServerContext
  ) async throws -> OPIStatsVirtioBlkResponse {
    let stats = try await bridge.statistics(OPIVirtioBlk.self, request.name)
    return OPIStatsVirtioBlkResponse.with { $0.stats = stats }
  }
}
