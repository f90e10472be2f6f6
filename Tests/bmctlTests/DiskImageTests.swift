import Glibc
import TestSupport
import Testing
import bmctl

@Suite("Disk images")
struct DiskImageTests {
  /// The header that `qemu-img create -f qcow2 x 64M` writes.
  private func header(_ change: (inout [UInt8]) -> Void = { _ in }) -> [UInt8] {
    var head = [UInt8](repeating: 0, count: 512)
    head.replaceSubrange(0..<8, with: [0x51, 0x46, 0x49, 0xFB, 0, 0, 0, 3])
    head[23] = 16
    head[28] = 4
    head[39] = 1
    head[99] = 4
    head[103] = 112
    change(&head)
    return head
  }

  @Test("A qcow2 image that stands alone has the size that its header says")
  func accepted() throws {
    guard case .qcow2(let image) = try DiskImage.inspect(header()) else {
      Issue.record("not taken for qcow2")
      return
    }
    #expect(image.virtualSize == 64 << 20)
  }

  @Test("What qemu-img itself writes is accepted, and what it makes with other files is not")
  func fromTheProgram() async throws {
    let qemu = try TestEnvironment.requireTool("qemu-img")
    let folder = try TemporaryDirectory()
    func head(_ name: String) throws -> [UInt8] { Array(try #require(readHead(folder.file(name)))) }
    try await ChildProcess.run(qemu, ["create", "-q", "-f", "qcow2", folder.file("alone"), "100M"])
    guard case .qcow2(let image) = try DiskImage.inspect(try head("alone")) else {
      Issue.record("not taken for qcow2")
      return
    }
    #expect(image.virtualSize == 100 << 20)
    try await ChildProcess.run(
      qemu, ["create", "-q", "-f", "qcow2", "-b", folder.file("alone"), "-F", "qcow2", folder.file("backed")])
    #expect(throws: DiskImage.Refusal.self) { try DiskImage.inspect(try head("backed")) }
    try await ChildProcess.run(
      qemu,
      ["create", "-q", "-f", "qcow2", "-o", "data_file=\(folder.file("data"))", folder.file("external"), "1M"])
    #expect(throws: DiskImage.Refusal.self) { try DiskImage.inspect(try head("external")) }
    try await ChildProcess.run(
      qemu, ["create", "-q", "-f", "qcow2", "-o", "compression_type=zstd", folder.file("zstd"), "1M"])
    #expect(throws: Never.self) { try DiskImage.inspect(try head("zstd")) }
  }

  @Test("Images that would read other files, or cannot be read, are refused")
  func refused() {
    let changes: [(String, (inout [UInt8]) -> Void)] = [
      ("backing file", { $0[15] = 1 }), ("encryption", { $0[35] = 2 }), ("external data", { $0[79] = 4 }),
      ("corrupt", { $0[79] = 2 }), ("unknown feature", { $0[72] = 0x80 }), ("version", { $0[7] = 4 }),
      ("empty", { $0[28] = 0 }), ("huge", { $0[24] = 0x7F }), ("negative", { $0[24] = 0xFF }),
      ("clusters", { $0[23] = 40 }),
    ]
    for (name, change) in changes {
      #expect(throws: DiskImage.Refusal.self, "\(name)") { try DiskImage.inspect(header(change)) }
    }
    #expect(throws: DiskImage.Refusal.self) { try DiskImage.inspect(Array(header()[..<71])) }
    #expect(throws: DiskImage.Refusal.self) { try DiskImage.inspect(Array(header()[..<103])) }
  }

  @Test("Compressed files and other formats are named with the remedy")
  func foreign() throws {
    for head in [[0x1F, 0x8B, 8, 0], Array("KDMV".utf8), Array("vhdxfile".utf8), [0x28, 0xB5, 0x2F, 0xFD]] {
      let refusal = #expect(throws: DiskImage.Refusal.self) { try DiskImage.inspect(head) }
      #expect(refusal?.remedy != nil)
    }
    #expect(try DiskImage.inspect([]) == .raw)
    #expect(try DiskImage.inspect([UInt8](repeating: 0, count: 512)) == .raw)
  }

  @Test("Random headers are accepted or refused, never more", arguments: [UInt64(1), 2, 3])
  func fuzz(seed: UInt64) {
    var random = SeededGenerator(seed: seed)
    for _ in 0..<2000 {
      var head = header()
      for _ in 0..<Int.random(in: 1...12, using: &random) {
        head[Int.random(in: 4..<112, using: &random)] = UInt8.random(in: 0...255, using: &random)
      }
      head = Array(head.prefix(Int.random(in: 0...512, using: &random)))
      if case .qcow2(let image) = try? DiskImage.inspect(head) {
        #expect(image.virtualSize > 0 && UInt64(image.virtualSize) <= QCOW2Header.virtualSizeMax)
        // No accepted image names another file.
        #expect(head[8..<16].allSatisfy { $0 == 0 })
      }
    }
  }

  @Test("Volumes are whole MiB")
  func sizes() {
    #expect(VolumeSize.roundedUp(1) == 1 << 20)
    #expect(VolumeSize.roundedUp(1 << 20) == 1 << 20)
    #expect(VolumeSize.roundedUp((1 << 20) + 512) == 2 << 20)
  }

  @Test("Checksums are taken with and without their prefix")
  func checksums() {
    let digest = String(repeating: "aB", count: 32)
    #expect(ChecksumText.parse("sha256:\(digest)") == digest.lowercased())
    #expect(ChecksumText.parse(digest) == digest.lowercased())
    #expect(ChecksumText.parse(String(digest.dropLast())) == nil)
    #expect(ChecksumText.parse(String(repeating: "g", count: 64)) == nil)
  }

  @Test("An image's name comes from its file")
  func names() {
    #expect(ImageName.from(file: "/a/Debian-12.qcow2") == "debian-12")
    #expect(ImageName.from(file: "disk.img") == "disk")
    #expect(ImageName.isValid("debian-12.5"))
    for name in ["", "-a", "a-", "A", "a_b", "a..b", "a/b", String(repeating: "a", count: 201)] {
      #expect(!ImageName.isValid(name), "\(name)")
    }
  }

  @Test("A second import of a name is told apart from a repetition")
  func presentImage() {
    func verdict(_ phase: String?, same: Bool, image: Bool = true, deleted: Bool = false, force: Bool = false)
      -> PresentImage.Verdict
    {
      PresentImage(isImage: image, isBeingDeleted: deleted, isSameFile: same, phase: phase).verdict(force: force)
    }
    #expect(verdict("Succeeded", same: true) == .present)
    #expect(verdict("Failed", same: true) == .replace)
    #expect(verdict(nil, same: true) == .replace)
    #expect(verdict("Succeeded", same: true, force: true) == .replace)
    #expect(verdict("Succeeded", same: false, force: true) == .replace)
    #expect(verdict("Succeeded", same: true, deleted: true) == .replace)
    for refused in [
      verdict("Succeeded", same: false), verdict("Uploading", same: true, force: true),
      verdict("Succeeded", same: true, image: false, force: true),
    ] {
      guard case .refuse = refused else {
        Issue.record("\(refused)")
        continue
      }
    }
  }

  private func readHead(_ path: String) -> [UInt8]? {
    guard let file = fopen(path, "r") else { return nil }
    defer { fclose(file) }
    var bytes = [UInt8](repeating: 0, count: DiskImage.inspectedBytes)
    let count = fread(&bytes, 1, bytes.count, file)
    return Array(bytes.prefix(count))
  }
}
