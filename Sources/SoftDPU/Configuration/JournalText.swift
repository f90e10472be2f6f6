import CLinux
import JSON

/// The journal of configuration changes as bytes: one line for each record. Nothing here does I/O.
///
/// A line is the length of its content in bytes and the CRC-32C of it, as eight hexadecimal digits each, then the
/// content, a JSON object, with single spaces in between. The first line says which file the journal follows; every
/// other one has a number, counted from 1, and the changes of one call.
package enum JournalText {
  /// What tells one file's content from another's.
  package struct Fingerprint: Sendable, Hashable {
    var length: Int
    var checksum: UInt32

    package init(_ bytes: some Collection<UInt8>) {
      length = bytes.count
      checksum = JournalText.checksum(Array(bytes))
    }

    fileprivate init?(_ value: JSONValue?) {
      guard let length = value?["length"]?.intValue, let text = value?["crc32c"]?.stringValue,
        let checksum = UInt32(text, radix: 16)
      else { return nil }
      self.length = length
      self.checksum = checksum
    }

    fileprivate var json: JSONValue {
      ["length": .integer(Int64(length)), "crc32c": .string(JournalText.hexadecimal(checksum))]
    }
  }

  /// Why a journal cannot be read.
  package struct Failure: Error, Hashable, CustomStringConvertible {
    /// Counted from 1.
    package var line: Int
    package var reason: String

    package init(line: Int, reason: String) {
      self.line = line
      self.reason = reason
    }

    package var description: String { "line \(line): \(reason)" }
  }

  /// What a journal says.
  package struct Content: Sendable, Hashable {
    package var follows: Fingerprint
    /// The changes of each record.
    package var records: [[SavedConfiguration.Change]] = []
    /// How many bytes at the end are the beginning of a record that was never whole.
    package var tornBytes = 0
  }

  private static let format = "softdpu journal 1"
  private static let prefixLength = 18

  /// The first line.
  package static func header(follows: Fingerprint) -> [UInt8] {
    line(["format": .string(format), "follows": follows.json])
  }

  package static func record(_ number: Int, _ changes: [SavedConfiguration.Change]) -> [UInt8] {
    line(["number": .integer(Int64(number)), "changes": .array(changes.map(\.json))])
  }

  /// Reads a journal. What stands at its end and is not whole was cut short by a crash, before its call was answered,
  /// and is left out; anything else that is not as it was written is an error.
  package static func parse(_ bytes: [UInt8]) throws(Failure) -> Content {
    var lines = bytes.split(separator: 0x0A, omittingEmptySubsequences: false)
    // Behind the last line break stands nothing, or what is not whole.
    let rest = lines.removeLast()
    guard let first = lines.first else { throw Failure(line: 1, reason: "the first line is not whole") }
    let header = try content(first, 1)
    guard header["format"]?.stringValue == format, let follows = Fingerprint(header["follows"]) else {
      throw Failure(line: 1, reason: "not the first line of a journal of this version")
    }
    var result = Content(follows: follows, tornBytes: rest.count)
    for (index, line) in lines.enumerated().dropFirst() {
      let record = try content(line, index + 1)
      guard record["number"]?.intValue == index else {
        throw Failure(
          line: index + 1, reason: "record \(record["number"]?.intValue ?? 0) where record \(index) was expected")
      }
      let changes = record["changes"]?.arrayValue?.map(SavedConfiguration.Change.init) ?? [nil]
      guard changes.allSatisfy({ $0 != nil }) else {
        throw Failure(line: index + 1, reason: "a change of a kind that this version does not know")
      }
      result.records.append(changes.compactMap(\.self))
    }
    return result
  }

  private static func content(_ line: ArraySlice<UInt8>, _ number: Int) throws(Failure) -> JSONValue {
    let prefix = String(decoding: line.prefix(prefixLength), as: UTF8.self).split(separator: " ")
    guard line.count > prefixLength, prefix.count == 2, prefix.allSatisfy({ $0.utf8.count == 8 }),
      let length = Int(prefix[0], radix: 16), let sum = UInt32(prefix[1], radix: 16)
    else { throw Failure(line: number, reason: "does not begin with a length and a checksum") }
    let bytes = Array(line.dropFirst(prefixLength))
    guard bytes.count == length else {
      throw Failure(line: number, reason: "\(bytes.count) bytes where \(length) were written")
    }
    guard checksum(bytes) == sum, hexadecimal(sum) == prefix[1], hexadecimal(UInt32(length)) == prefix[0] else {
      throw Failure(line: number, reason: "the checksum does not hold")
    }
    do throws(JSONError) {
      return try JSONValue.parse(bytes)
    } catch {
      throw Failure(line: number, reason: "\(error)")
    }
  }

  private static func line(_ value: JSONValue) -> [UInt8] {
    let content = value.serialize()
    return Array("\(hexadecimal(UInt32(content.count))) \(hexadecimal(checksum(content))) ".utf8) + content + [0x0A]
  }

  private static func checksum(_ bytes: [UInt8]) -> UInt32 {
    // SAFETY: the buffer and its length belong together.
    unsafe bytes.withUnsafeBytes { buffer in
      guard let base = buffer.baseAddress else { return 0 }
      return unsafe clinux_crc32c(0, base, buffer.count)
    }
  }

  private static func hexadecimal(_ value: UInt32) -> String {
    let text = String(value, radix: 16)
    return String(repeating: "0", count: 8 - text.count) + text
  }
}
