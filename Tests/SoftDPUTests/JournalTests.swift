import Glibc
import JSON
import SoftDPU
import TestSupport
import Testing

/// The configuration's journal as bytes, and what is made of file and journal after a crash.
@Suite struct JournalTests {
  private static func disk(_ number: Int, blocks: Int64 = 8) -> ConfigurationCall {
    ConfigurationCall(
      method: "bdev_malloc_create",
      parameters: ["name": .string("m\(number)"), "block_size": 512, "num_blocks": .integer(blocks)])
  }

  private static func records(_ count: Int) -> [[SavedConfiguration.Change]] {
    (0..<count).map { number in
      number % 4 == 3
        ? [.remove(key: disk(number - 1).key), .update(disk(number - 2, blocks: 16))] : [.add(disk(number))]
    }
  }

  private static func journal(follows file: [UInt8], _ records: [[SavedConfiguration.Change]]) -> [UInt8] {
    records.enumerated().reduce(JournalText.header(follows: JournalText.Fingerprint(file))) {
      $0 + JournalText.record($1.offset + 1, $1.element)
    }
  }

  private static func file(_ configuration: SavedConfiguration) -> [UInt8] { configuration.file.serialize() + [0x0A] }

  private static func applied(
    _ records: ArraySlice<[SavedConfiguration.Change]>, to configuration: SavedConfiguration = SavedConfiguration()
  ) -> SavedConfiguration {
    var configuration = configuration
    for record in records { for change in record { configuration.apply(change) } }
    return configuration
  }

  // MARK: The text

  @Test func isReadAsItWasWritten() throws {
    let records = Self.records(20)
    let content = try JournalText.parse(Self.journal(follows: [1, 2, 3], records))
    #expect(content.records == records && content.tornBytes == 0)
    #expect(content.follows == JournalText.Fingerprint([1, 2, 3]))
  }

  /// A crash leaves the beginning of what was being written.
  @Test func whatIsCutShortIsWhatWasWholeBefore() throws {
    let records = Self.records(6)
    let whole = Self.journal(follows: [], records)
    var ends = [JournalText.header(follows: JournalText.Fingerprint([])).count]
    for (index, record) in records.enumerated() {
      ends.append(ends[index] + JournalText.record(index + 1, record).count)
    }
    for length in 0..<whole.count {
      let bytes = Array(whole.prefix(length))
      guard length >= ends[0] else {
        #expect(throws: JournalText.Failure.self) { try JournalText.parse(bytes) }
        continue
      }
      let content = try JournalText.parse(bytes)
      let count = ends.lastIndex { $0 <= length } ?? 0
      #expect(content.records == Array(records.prefix(count)))
      #expect(content.tornBytes == length - ends[count])
    }
  }

  /// A byte that is not as it was written is never taken for a crash, unless it is the end of the last line.
  @Test func whatIsDamagedNamesItsLine() throws {
    let whole = Self.journal(follows: [], Self.records(5))
    var line = 1
    for index in whole.indices {
      for flip in [UInt8(0x01), 0x20, 0x80] {
        var bytes = whole
        bytes[index] ^= flip
        do {
          let content = try JournalText.parse(bytes)
          #expect(index == whole.count - 1 && content.records.count == 4 && content.tornBytes > 0)
        } catch {
          #expect(error.line == line, "byte \(index): \(error)")
        }
      }
      if whole[index] == 0x0A { line += 1 }
    }
    let records = Self.records(3)
    let header = JournalText.header(follows: JournalText.Fingerprint([]))
    // A line that somebody took out.
    let gap = header + JournalText.record(1, records[0]) + JournalText.record(3, records[2])
    #expect(throws: JournalText.Failure(line: 3, reason: "record 3 where record 2 was expected")) {
      try JournalText.parse(gap)
    }
  }

  @Test func anyBytesAreReadOrRefused() {
    var random = SeededGenerator(seed: 7)
    let whole = Self.journal(follows: [], Self.records(4))
    for _ in 0..<2000 {
      var bytes = whole
      for _ in 0..<Int.random(in: 1...8, using: &random) {
        let place = Int.random(in: 0..<bytes.count, using: &random)
        switch Int.random(in: 0..<3, using: &random) {
        case 0: bytes[place] = UInt8.random(in: 0...255, using: &random)
        case 1: bytes.removeSubrange(place..<min(bytes.count, place + Int.random(in: 0..<40, using: &random)))
        default: bytes.insert(contentsOf: random.bytes(Int.random(in: 0..<40, using: &random)), at: place)
        }
        if bytes.isEmpty { bytes = [0x0A] }
      }
      _ = try? JournalText.parse(bytes)
      _ = try? JournalText.parse(random.bytes(Int.random(in: 0..<300, using: &random)))
    }
  }

  // MARK: The value

  @Test func changesKeepTheOrderInWhichThingsRestOnEachOther() {
    var configuration = SavedConfiguration([Self.disk(1), Self.disk(2)])
    let limit = ConfigurationCall(
      method: "bdev_set_qos_limit", parameters: ["name": "m1", "rw_ios_per_sec": 1000])
    configuration.apply(.update(limit))
    configuration.apply(.update(Self.disk(1, blocks: 99)))
    #expect(configuration.calls == [Self.disk(1, blocks: 99), Self.disk(2), limit])
    // What is made anew comes last, and what is gone is gone.
    configuration.apply(.remove(key: limit.key))
    configuration.apply(.add(Self.disk(1)))
    configuration.apply(.remove(key: "bdev_malloc_create nobody"))
    #expect(configuration.calls == [Self.disk(2), Self.disk(1)])
    // Calls of other methods, and of the same one twice, are left as a file has them.
    let unknown = ConfigurationCall(method: "sock_set_default_impl", parameters: ["impl_name": "posix"])
    #expect(SavedConfiguration(SavedConfiguration([unknown, unknown]).file)?.calls == [unknown, unknown])
    #expect(SavedConfiguration(["version": 1]) == nil)
  }

  // MARK: Files after a crash

  /// A state directory with these files.
  private static func directory(_ files: [String: [UInt8]]) throws -> TemporaryDirectory {
    let directory = try TemporaryDirectory()
    for (name, bytes) in files {
      try #require(write(bytes, to: directory.file(name)))
    }
    return directory
  }

  private static func write(_ bytes: [UInt8], to path: String) -> Bool {
    guard let file = fopen(path, "w") else { return false }
    defer { fclose(file) }
    return fwrite(bytes, 1, bytes.count, file) == bytes.count
  }

  private static let old = SavedConfiguration([disk(100), disk(101)])

  @Test func everyCutLeavesTheStateBeforeOrAfterACall() throws {
    let records = Self.records(9)
    let file = Self.file(Self.old)
    let whole = Self.journal(follows: file, records)
    let last = Self.journal(follows: file, Array(records.prefix(7))).count
    var seen: Set<[ConfigurationCall]> = []
    for length in last...whole.count {
      let directory = try Self.directory([
        "softdpu.json": file, "softdpu.journal": Array(whole.prefix(length)),
      ])
      let loaded = try ConfigurationStore(directory: directory.path).load()
      seen.insert(loaded.configuration.calls)
      let whole = (7...9).contains {
        loaded.configuration.calls == Self.applied(records[..<$0], to: Self.old).calls
      }
      #expect(whole, "cut at \(length)")
      // It is in the file now, and the next start finds the same.
      #expect(
        try ConfigurationStore(directory: directory.path).load().configuration.calls == loaded.configuration.calls)
      #expect(
        SavedConfiguration(try JSONValue.parse(contentsOfFile(directory.file("softdpu.json")) ?? ""))?.calls
          == loaded.configuration.calls)
    }
    #expect(seen.count == 3)
  }

  /// All states of the directory between the old file with its journal and the new one.
  @Test func aRewriteThatWasCutShortLosesNothing() throws {
    let records = Self.records(6)
    let after = Self.applied(records[...], to: Self.old)
    let (oldFile, newFile) = (Self.file(Self.old), Self.file(after))
    let oldJournal = Self.journal(follows: oldFile, records)
    let newJournal = Self.journal(follows: newFile, [])
    let states: [[String: [UInt8]]] = [
      ["softdpu.journal.new.new": Array(newJournal.prefix(9))],
      ["softdpu.journal.new": newJournal],
      ["softdpu.journal.new": newJournal, "softdpu.json.new": Array(newFile.prefix(40))],
      ["softdpu.journal.new": newJournal, "softdpu.json.new": newFile],
      ["softdpu.journal.new": newJournal, "softdpu.json": newFile],
      ["softdpu.journal": newJournal, "softdpu.json": newFile],
    ]
    for (index, state) in states.enumerated() {
      let directory = try Self.directory(
        ["softdpu.json": oldFile, "softdpu.journal": oldJournal].merging(state) { $1 })
      let loaded = try ConfigurationStore(directory: directory.path).load()
      #expect(loaded.configuration.calls == after.calls, "state \(index)")
      #expect(try ConfigurationStore(directory: directory.path).load().configuration.calls == after.calls)
    }
    // The same at the end of a process, where the new journal is removed at last.
    for journal in [["softdpu.journal": newJournal], [:], ["softdpu.journal.new": newJournal]] {
      let directory = try Self.directory(["softdpu.json": newFile].merging(journal) { $1 })
      #expect(try ConfigurationStore(directory: directory.path).load().configuration.calls == after.calls)
    }
  }

  @Test func whatDoesNotBelongTogetherIsNotPutTogether() throws {
    let file = Self.file(Self.old)
    let journal = Self.journal(follows: Self.file(SavedConfiguration()), Self.records(2))
    let directory = try Self.directory(["softdpu.json": file, "softdpu.journal": journal])
    let error = #expect(throws: SoftDPUError.self) { try ConfigurationStore(directory: directory.path).load() }
    #expect(error?.description.contains(directory.file("softdpu.journal")) == true)
    #expect(error?.description.contains("move the journal away") == true)
    unlink(directory.file("softdpu.journal"))
    #expect(try ConfigurationStore(directory: directory.path).load().configuration.calls == Self.old.calls)
  }

  @Test func aDamagedJournalStopsTheStartAndStays() throws {
    let file = Self.file(Self.old)
    var journal = Self.journal(follows: file, Self.records(5))
    let place = Self.journal(follows: file, Self.records(2)).count + 30
    journal[place] ^= 1
    let directory = try Self.directory(["state-softdpu.json": file])
    mkdir(directory.file("state"), 0o700)
    #expect(Self.write(file, to: directory.file("state/softdpu.json")))
    #expect(Self.write(journal, to: directory.file("state/softdpu.journal")))
    let error = #expect(throws: SoftDPUError.self) { try Target.start(directory) }
    let text = error?.description ?? ""
    #expect(text.contains("softdpu.journal") && text.contains("line 4") && text.contains("Restore the file"), "\(text)")
    #expect(contentsOfFile(directory.file("state/softdpu.journal")) == String(decoding: journal, as: UTF8.self))
  }
}
