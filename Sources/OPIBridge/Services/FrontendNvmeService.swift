import GRPCCore
import OPI
import SwiftProtobuf

/// `FrontendNvmeService`: each method is one of the bridge's.
struct FrontendNvmeService: OPIFrontendNvmeService.SimpleServiceProtocol {
  let bridge: Bridge

  func createNvmeSubsystem(request: OPICreateNvmeSubsystemRequest, context: ServerContext) async throws
    -> OPINvmeSubsystem
  {
    guard request.hasNvmeSubsystem else { throw RPCError.missing("nvme_subsystem") }
    return try await bridge.create(request.nvmeSubsystem, id: request.nvmeSubsystemID, idField: "nvme_subsystem_id")
  }

  func deleteNvmeSubsystem(
    request: OPIDeleteNvmeSubsystemRequest, context: ServerContext
  ) async throws -> Google_Protobuf_Empty {
    try await bridge.delete(OPINvmeSubsystem.self, request.name, allowMissing: request.allowMissing)
    return Google_Protobuf_Empty()
  }

  func updateNvmeSubsystem(request: OPIUpdateNvmeSubsystemRequest, context: ServerContext) async throws
    -> OPINvmeSubsystem
  {
    guard request.hasNvmeSubsystem else { throw RPCError.missing("nvme_subsystem") }
    return try await bridge.update(
      request.nvmeSubsystem, mask: request.hasUpdateMask ? request.updateMask : nil, allowMissing: request.allowMissing)
  }

  func listNvmeSubsystems(
    request: OPIListNvmeSubsystemsRequest, context: ServerContext
  ) async throws -> OPIListNvmeSubsystemsResponse {
    let page = try await bridge.list(
      OPINvmeSubsystem.self, size: request.pageSize, token: request.pageToken)
    return OPIListNvmeSubsystemsResponse.with {
      $0.nvmeSubsystems = page.resources
      $0.nextPageToken = page.next
    }
  }

  func getNvmeSubsystem(request: OPIGetNvmeSubsystemRequest, context: ServerContext) async throws -> OPINvmeSubsystem {
    try await bridge.get(OPINvmeSubsystem.self, request.name)
  }

  func statsNvmeSubsystem(
    request: OPIStatsNvmeSubsystemRequest, context: ServerContext
  ) async throws -> OPIStatsNvmeSubsystemResponse {
    let stats = try await bridge.statistics(OPINvmeSubsystem.self, request.name)
    return OPIStatsNvmeSubsystemResponse.with { $0.stats = stats }
  }

  func createNvmeController(request: OPICreateNvmeControllerRequest, context: ServerContext) async throws
    -> OPINvmeController
  {
    guard request.hasNvmeController else { throw RPCError.missing("nvme_controller") }
    return try await bridge.create(
      request.nvmeController, id: request.nvmeControllerID, idField: "nvme_controller_id", parent: request.parent)
  }

  func deleteNvmeController(
    request: OPIDeleteNvmeControllerRequest, context: ServerContext
  ) async throws -> Google_Protobuf_Empty {
    try await bridge.delete(OPINvmeController.self, request.name, allowMissing: request.allowMissing)
    return Google_Protobuf_Empty()
  }

  func updateNvmeController(request: OPIUpdateNvmeControllerRequest, context: ServerContext) async throws
    -> OPINvmeController
  {
    guard request.hasNvmeController else { throw RPCError.missing("nvme_controller") }
    return try await bridge.update(
      request.nvmeController, mask: request.hasUpdateMask ? request.updateMask : nil, allowMissing: request.allowMissing
    )
  }

  func listNvmeControllers(
    request: OPIListNvmeControllersRequest, context: ServerContext
  ) async throws -> OPIListNvmeControllersResponse {
    let page = try await bridge.list(
      OPINvmeController.self, parent: request.parent, size: request.pageSize, token: request.pageToken)
    return OPIListNvmeControllersResponse.with {
      $0.nvmeControllers = page.resources
      $0.nextPageToken = page.next
    }
  }

  func getNvmeController(request: OPIGetNvmeControllerRequest, context: ServerContext) async throws -> OPINvmeController
  {
    try await bridge.get(OPINvmeController.self, request.name)
  }

  func statsNvmeController(
    request: OPIStatsNvmeControllerRequest, context: ServerContext
  ) async throws -> OPIStatsNvmeControllerResponse {
    let stats = try await bridge.statistics(OPINvmeController.self, request.name)
    return OPIStatsNvmeControllerResponse.with { $0.stats = stats }
  }

  func createNvmeNamespace(request: OPICreateNvmeNamespaceRequest, context: ServerContext) async throws
    -> OPINvmeNamespace
  {
    guard request.hasNvmeNamespace else { throw RPCError.missing("nvme_namespace") }
    return try await bridge.create(
      request.nvmeNamespace, id: request.nvmeNamespaceID, idField: "nvme_namespace_id", parent: request.parent)
  }

  func deleteNvmeNamespace(
    request: OPIDeleteNvmeNamespaceRequest, context: ServerContext
  ) async throws -> Google_Protobuf_Empty {
    try await bridge.delete(OPINvmeNamespace.self, request.name, allowMissing: request.allowMissing)
    return Google_Protobuf_Empty()
  }

  func updateNvmeNamespace(request: OPIUpdateNvmeNamespaceRequest, context: ServerContext) async throws
    -> OPINvmeNamespace
  {
    guard request.hasNvmeNamespace else { throw RPCError.missing("nvme_namespace") }
    return try await bridge.update(
      request.nvmeNamespace, mask: request.hasUpdateMask ? request.updateMask : nil, allowMissing: request.allowMissing)
  }

  func listNvmeNamespaces(
    request: OPIListNvmeNamespacesRequest, context: ServerContext
  ) async throws -> OPIListNvmeNamespacesResponse {
    let page = try await bridge.list(
      OPINvmeNamespace.self, parent: request.parent, size: request.pageSize, token: request.pageToken)
    return OPIListNvmeNamespacesResponse.with {
      $0.nvmeNamespaces = page.resources
      $0.nextPageToken = page.next
    }
  }

  func getNvmeNamespace(request: OPIGetNvmeNamespaceRequest, context: ServerContext) async throws -> OPINvmeNamespace {
    try await bridge.get(OPINvmeNamespace.self, request.name)
  }

  func statsNvmeNamespace(
    request: OPIStatsNvmeNamespaceRequest, context: ServerContext
  ) async throws -> OPIStatsNvmeNamespaceResponse {
    let stats = try await bridge.statistics(OPINvmeNamespace.self, request.name)
    return OPIStatsNvmeNamespaceResponse.with { $0.stats = stats }
  }
}
