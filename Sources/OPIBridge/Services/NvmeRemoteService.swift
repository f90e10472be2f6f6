import GRPCCore
import OPI
import SwiftProtobuf

/// `NvmeRemoteControllerService`: each method is one of the bridge's.
struct NvmeRemoteService: OPINvmeRemoteControllerService.SimpleServiceProtocol {
  let bridge: Bridge

  func createNvmeRemoteController(request: OPICreateNvmeRemoteControllerRequest, context: ServerContext) async throws
    -> OPINvmeRemoteController
  {
    guard request.hasNvmeRemoteController else { throw RPCError.missing("nvme_remote_controller") }
    return try await bridge.create(
      request.nvmeRemoteController, id: request.nvmeRemoteControllerID, idField: "nvme_remote_controller_id")
  }

  func deleteNvmeRemoteController(
    request: OPIDeleteNvmeRemoteControllerRequest, context: ServerContext
  ) async throws -> Google_Protobuf_Empty {
    try await bridge.delete(OPINvmeRemoteController.self, request.name, allowMissing: request.allowMissing)
    return Google_Protobuf_Empty()
  }

  func updateNvmeRemoteController(request: OPIUpdateNvmeRemoteControllerRequest, context: ServerContext) async throws
    -> OPINvmeRemoteController
  {
    guard request.hasNvmeRemoteController else { throw RPCError.missing("nvme_remote_controller") }
    return try await bridge.update(
      request.nvmeRemoteController, mask: request.hasUpdateMask ? request.updateMask : nil,
      allowMissing: request.allowMissing)
  }

  func listNvmeRemoteControllers(
    request: OPIListNvmeRemoteControllersRequest, context: ServerContext
  ) async throws -> OPIListNvmeRemoteControllersResponse {
    let page = try await bridge.list(
      OPINvmeRemoteController.self, size: request.pageSize, token: request.pageToken)
    return OPIListNvmeRemoteControllersResponse.with {
      $0.nvmeRemoteControllers = page.resources
      $0.nextPageToken = page.next
    }
  }

  func getNvmeRemoteController(request: OPIGetNvmeRemoteControllerRequest, context: ServerContext) async throws
    -> OPINvmeRemoteController
  {
    try await bridge.get(OPINvmeRemoteController.self, request.name)
  }

  func statsNvmeRemoteController(
    request: OPIStatsNvmeRemoteControllerRequest, context: ServerContext
  ) async throws -> OPIStatsNvmeRemoteControllerResponse {
    let stats = try await bridge.statistics(OPINvmeRemoteController.self, request.name)
    return OPIStatsNvmeRemoteControllerResponse.with { $0.stats = stats }
  }

  func createNvmePath(request: OPICreateNvmePathRequest, context: ServerContext) async throws -> OPINvmePath {
    guard request.hasNvmePath else { throw RPCError.missing("nvme_path") }
    return try await bridge.create(
      request.nvmePath, id: request.nvmePathID, idField: "nvme_path_id", parent: request.parent)
  }

  func deleteNvmePath(
    request: OPIDeleteNvmePathRequest, context: ServerContext
  ) async throws -> Google_Protobuf_Empty {
    try await bridge.delete(OPINvmePath.self, request.name, allowMissing: request.allowMissing)
    return Google_Protobuf_Empty()
  }

  func updateNvmePath(request: OPIUpdateNvmePathRequest, context: ServerContext) async throws -> OPINvmePath {
    guard request.hasNvmePath else { throw RPCError.missing("nvme_path") }
    return try await bridge.update(
      request.nvmePath, mask: request.hasUpdateMask ? request.updateMask : nil, allowMissing: request.allowMissing)
  }

  func listNvmePaths(
    request: OPIListNvmePathsRequest, context: ServerContext
  ) async throws -> OPIListNvmePathsResponse {
    let page = try await bridge.list(
      OPINvmePath.self, parent: request.parent, size: request.pageSize, token: request.pageToken)
    return OPIListNvmePathsResponse.with {
      $0.nvmePaths = page.resources
      $0.nextPageToken = page.next
    }
  }

  func getNvmePath(request: OPIGetNvmePathRequest, context: ServerContext) async throws -> OPINvmePath {
    try await bridge.get(OPINvmePath.self, request.name)
  }

  func statsNvmePath(
    request: OPIStatsNvmePathRequest, context: ServerContext
  ) async throws -> OPIStatsNvmePathResponse {
    let stats = try await bridge.statistics(OPINvmePath.self, request.name)
    return OPIStatsNvmePathResponse.with { $0.stats = stats }
  }

  func resetNvmeRemoteController(
    request: OPIResetNvmeRemoteControllerRequest, context: ServerContext
  ) async throws -> Google_Protobuf_Empty {
    try await bridge.resetRemoteController(request.name)
    return Google_Protobuf_Empty()
  }

  func listNvmeRemoteNamespaces(
    request: OPIListNvmeRemoteNamespacesRequest, context: ServerContext
  ) async throws -> OPIListNvmeRemoteNamespacesResponse {
    let page = try await bridge.remoteNamespaces(request.parent, size: request.pageSize, token: request.pageToken)
    return OPIListNvmeRemoteNamespacesResponse.with {
      $0.nvmeRemoteNamespaces = page.namespaces
      $0.nextPageToken = page.next
    }
  }

  func getNvmeRemoteNamespace(
    request: OPIGetNvmeRemoteNamespaceRequest, context: ServerContext
  ) async throws -> OPINvmeRemoteNamespace {
    try await bridge.remoteNamespace(request.name)
  }
}
