import Dispatch
import Glibc
import JSON
import JSONRPC
import Logging

// Snapshots of several devices at one moment: a method of this data plane's own, beside SPDK's.
extension Methods {
  static let groupSnapshots: [String: Method] = [
    "bdev_snapshot_files": { try $0.snapshotFiles($1, $2) }
  ]

  private static let maximumFiles = 64
  private static let defaultHold: UInt32 = 1000
  private static let maximumHold: UInt32 = 10_000

  /// EINVAL for a bdev that is no regular file, and for names that could lead elsewhere; EBUSY for one that others write to.
  private func snapshotFiles(_ request: Request, _ reply: @escaping Reply) throws {
    let parameters = try Parameters(request, allowed: ["folder", "files", "hold_limit_ms"])
    let folder = try parameters.string("folder")
    let files = try parameters.objects("files", allowed: ["name", "file"])
    let limit = try parameters.optionalUInt32("hold_limit_ms") ?? Methods.defaultHold
    let operation = "take the snapshot \(folder)"
    let segments = folder.split(separator: "/", omittingEmptySubsequences: false).dropFirst()
    guard folder.hasPrefix("/"), folder.utf8.count < 3000, segments.count >= 2,
      segments.allSatisfy({ Methods.isFileName(String($0)) }), !files.isEmpty, files.count <= Methods.maximumFiles,
      (1...Methods.maximumHold).contains(limit)
    else { throw SoftDPUError.system(EINVAL, operation) }
    var items: [GroupSnapshot.Item] = []
    for file in files {
      let name = try file.string("name")
      let clone = try file.string("file")
      guard let device = try inventory.requireDevice(name, "\(operation): bdev") as? FileDevice,
        device.isRegularFile, Methods.isFileName(clone),
        !items.contains(where: { $0.file == clone || $0.device === device })
      else { throw SoftDPUError.system(EINVAL, "\(operation): bdev \(name)") }
      // What is kept back here goes on elsewhere, and large files are cloned in parts.
      guard !device.parameters.isShared || device.isReadOnly else {
        throw SoftDPUError(
          code: .system(EBUSY), operation: "\(operation): bdev \(name)",
          message: "it is shared: others may write to its file meanwhile")
      }
      items.append(GroupSnapshot.Item(device: device, file: clone))
    }
    let group = GroupSnapshot(folder: folder, items: items, limit: UInt64(limit) * 1_000_000)
    let logger = inventory.logger
    GroupSnapshot.work.async {
      do throws(SoftDPUError) {
        let outcome = try group.take()
        logger.info(
          "snapshot taken",
          metadata: ["folder": "\(folder)", "bdevs": "\(group.items.count)", "pause_us": "\(outcome.pause)"])
        reply(
          .success([
            "folder": .string(folder), "pause_us": .integer(Int64(clamping: outcome.pause)),
            "taken_at_us": .integer(outcome.takenAt),
            "files": .array(
              zip(group.items, outcome.sizes).map { item, size in
                ["name": .string(item.device.name), "file": .string(item.file), "size": .integer(size)]
              }),
          ]))
      } catch {
        reply(.failure(answer(error, request.method)))
      }
    }
  }

  /// One part of a path, which leads nowhere else and is no hidden file.
  private static func isFileName(_ name: String) -> Bool {
    !name.isEmpty && name.utf8.count <= 200 && !name.hasPrefix(".") && !name.utf8.contains(0) && !name.contains("/")
  }
}
