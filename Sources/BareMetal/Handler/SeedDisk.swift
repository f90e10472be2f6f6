#if canImport(Glibc)
  import Glibc
#elseif canImport(Musl)
  import Musl
#endif

/// NoCloud seed disks: a small FAT file system labelled CIDATA (cloud-init, data source NoCloud).
///
/// The file's name carries a hash of its content, so that it is made anew only when the content changes.
package struct SeedDisk: Sendable {
  /// Where the disks are kept.
  package let directory: String

  /// - Parameter directory: Where the disks are kept; it must exist.
  package init(directory: String) { self.directory = directory }

  /// Where the disk for this boot data is, or would be.
  package func path(for data: BootData) -> String {
    var hash: UInt64 = 0xcbf2_9ce4_8422_2325
    for text in [data.machineUID, data.userData, data.metaData, data.networkConfig] {
      for byte in text.utf8 { hash = (hash ^ UInt64(byte)) &* 0x100_0000_01b3 }
      hash = (hash ^ 0x1ff) &* 0x100_0000_01b3
    }
    let digits = String(hash, radix: 16)
    return "\(directory)/seed-" + String(repeating: "0", count: 16 - digits.count) + digits + ".img"
  }

  /// Makes the disk if it is not there, and returns its path. Other disks stay until `removeOthers`.
  package func make(for data: BootData) async throws -> String {
    let path = path(for: data)
    if Files.exists(path) { return path }
    let parts = [
      ("user-data", data.userData), ("meta-data", data.metaData), ("network-config", data.networkConfig),
    ]
    let kibibytes = parts.reduce(0) { $0 + ($1.1.utf8.count + 1023) / 1024 }
    guard kibibytes <= 2048 else {
      throw BareMetalError(
        .invalid, operation: "make the seed disk for \(data.machine)",
        message: "cloud-init's data has \(kibibytes) KiB, the limit is 2048; load large files from the network")
    }
    // Room for the file system's own tables, in whole pages.
    let size = (max(128, kibibytes + kibibytes / 8 + 96) + 3) & ~3
    let work = "\(directory)/.making"
    try Files.makeDirectory(work, mode: 0o700)
    let image = "\(work)/seed.img"
    for name in Files.list(work) { try Files.remove("\(work)/\(name)") }
    let operation = "make the seed disk for \(data.machine)"
    try await Tool.run(
      "mkfs.vfat", ["-C", "-n", "CIDATA", image, "\(size)"], operation: operation,
      remedy: "install the package dosfstools")
    guard chmod(image, 0o600) == 0 else {
      throw BareMetalError(.system, operation: operation, message: String(cString: strerror(errno)))
    }
    var sources: [String] = []
    for (name, text) in parts {
      let source = "\(work)/\(name)"
      try Files.write(text.utf8, to: source, mode: 0o600)
      sources.append(source)
    }
    try await Tool.run(
      "mcopy", ["-i", image] + sources + ["::"], operation: operation, remedy: "install the package mtools")
    for source in sources { try Files.remove(source) }
    guard rename(image, path) == 0 else {
      throw BareMetalError(.system, operation: operation, message: String(cString: strerror(errno)))
    }
    return path
  }

  /// Removes all disks but this one.
  package func removeOthers(than path: String?) throws {
    for name in Files.list(directory) where name.hasPrefix("seed-") && "\(directory)/\(name)" != path {
      try Files.remove("\(directory)/\(name)")
    }
  }
}
