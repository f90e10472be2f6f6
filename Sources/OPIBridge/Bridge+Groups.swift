import GRPCCore
import JSON
package import OPI
import SwiftProtobuf

/// Snapshots of several volumes at one moment. The data plane makes them whole, or not at all; there are no records of
/// them here.
extension Bridge {
  private static let maximumFiles = 64

  package func snapshotFiles(_ request: YCSnapshotFilesRequest) async throws -> YCSnapshotFilesResponse {
    try BlockVolumes.check(path: request.folder, field: "folder")
    guard !request.files.isEmpty else { throw RPCError.missing("files") }
    guard request.files.count <= Self.maximumFiles else {
      throw RPCError.invalid("files", "\(request.files.count)", "are more than \(Self.maximumFiles)")
    }
    guard (0...10_000).contains(request.holdLimitMs) else {
      throw RPCError.invalid("hold_limit_ms", "\(request.holdLimitMs)", "is not from 0 to 10000")
    }
    var files: [JSONValue] = []
    for file in request.files {
      try YCVolume.collection.check(file.name)
      guard !file.file.isEmpty, !file.file.hasPrefix("."), !file.file.contains("/"), file.file.utf8.count <= 200,
        !file.file.utf8.contains(0)
      else { throw RPCError.invalid("files.file", file.file, "is no name of a file") }
      files.append(["name": .string(ResourceName.id(of: file.name)), "file": .string(file.file)])
    }
    var parameters: JSONValue = ["folder": .string(request.folder), "files": .array(files)]
    if request.holdLimitMs > 0 { parameters["hold_limit_ms"] = .integer(Int64(request.holdLimitMs)) }
    let call = parameters
    let answer = try await changing {
      try await self.target.call("bdev_snapshot_files", call, for: "take the snapshot \(request.folder)")
    }
    guard let pause = answer["pause_us"]?.int64Value, let taken = answer["taken_at_us"]?.int64Value else {
      throw RPCError(code: .internalError, message: "the snapshot \(request.folder): the answer is not understood")
    }
    return YCSnapshotFilesResponse.with {
      $0.folder = request.folder
      $0.pauseUs = pause
      $0.takenAtUs = taken
    }
  }
}
