#if canImport(Glibc)
  import Glibc
#elseif canImport(Musl)
  import Musl
#endif

/// The directory that stands for the PCIe bus.
package struct BusDirectory: Sendable {
  package let path: String
  /// More entries than this are not looked at.
  package static let entriesMax = 256

  package struct Content: Sendable, Hashable {
    /// Ordered by identifier.
    package var functions: [BusFunction] = []
    /// Files that look like functions but are none, with the reason.
    package var problems: [String] = []
  }

  package init(path: String) {
    self.path = path
  }

  /// Reads what is on the bus now.
  package func scan() throws -> Content {
    guard let directory = opendir(path) else { throw TextFile.failure("read the bus directory \(path)", errno) }
    defer { closedir(directory) }
    var content = Content()
    var seen = 0
    while let entry = readdir(directory), seen < BusDirectory.entriesMax {
      let name = withUnsafePointer(to: &entry.pointee.d_name) { pointer in
        pointer.withMemoryRebound(to: CChar.self, capacity: 256) { String(cString: $0) }
      }
      guard let kind = BusFunction.entry(name) else { continue }
      seen += 1
      add(name, kind, isSocket: entry.pointee.d_type == UInt8(DT_SOCK), to: &content)
    }
    content.functions.sort { $0.id < $1.id }
    content.problems.sort()
    return content
  }

  private func add(_ name: String, _ kind: BusFunction.Entry, isSocket: Bool, to content: inout Content) {
    let file = path + "/" + name
    switch kind {
    case .disk(let id, let order):
      guard isSocket else {
        content.problems.append("\(name) is not a socket")
        return
      }
      guard file.utf8.count <= 107, !file.contains(",") else {
        content.problems.append("\(name) cannot be connected to: its path is longer than 107 bytes or has a comma")
        return
      }
      content.functions.append(BusFunction(id: id, order: order, kind: .disk(socket: file)))
    case .nic(let id, let order):
      do {
        let bytes = try TextFile.readBytes(file, limit: 4096)
        content.functions.append(try BusFunction.nic(id: id, order: order, content: bytes))
      } catch {
        // Gone between listing and reading is no problem.
        if access(file, F_OK) == 0 { content.problems.append("\(name): \(error)") }
      }
    }
  }
}
