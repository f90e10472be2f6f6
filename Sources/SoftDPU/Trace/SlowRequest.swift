public import JSON

/// A request that took longer than the threshold, as clients are told of it.
public struct SlowRequest: Sendable, Hashable {
  /// When it ended, in nanoseconds of the data plane's monotonic clock.
  public var ended: UInt64
  /// read, write, flush, unmap or write_zeroes.
  public var kind: String
  public var device: String
  /// Another name of it, which tells people more: a volume's store and name.
  public var alias: String?
  /// In bytes.
  public var offset: UInt64
  public var length: UInt64
  /// How long it waited for a limit or a path, and how long the device had it, in microseconds.
  public var waiting: UInt64
  public var serving: UInt64
  /// The system's error number; 0 where it succeeded.
  public var error: Int
  /// The way out, and who is at its other end.
  public var asker: String

  var json: JSONValue {
    var value: JSONValue = [
      "ended_ticks": .integer(Int64(clamping: ended)), "io_type": .string(kind), "bdev": .string(device),
      "offset": .integer(Int64(clamping: offset)), "length": .integer(Int64(clamping: length)),
      "waiting_us": .integer(Int64(clamping: waiting)), "serving_us": .integer(Int64(clamping: serving)),
      "error": .integer(Int64(error)), "asker": .string(asker),
    ]
    if let alias { value["alias"] = .string(alias) }
    return value
  }

  /// Reads one of the requests of `bdev_get_slow_io`.
  init?(_ value: JSONValue) {
    guard let kind = value["io_type"]?.stringValue, let device = value["bdev"]?.stringValue else { return nil }
    func number(_ name: String) -> UInt64 { UInt64(clamping: value[name]?.int64Value ?? 0) }
    self.kind = kind
    self.device = device
    alias = value["alias"]?.stringValue
    (ended, offset, length) = (number("ended_ticks"), number("offset"), number("length"))
    (waiting, serving) = (number("waiting_us"), number("serving_us"))
    error = value["error"]?.intValue ?? 0
    asker = value["asker"]?.stringValue ?? ""
  }

  /// Lines of a table of an answer to `bdev_get_slow_io`, with what it says of the whole in the last.
  public static func table(_ answer: JSONValue) -> [String] {
    let now = UInt64(clamping: answer["ticks"]?.int64Value ?? 0)
    let requests = (answer["requests"]?.arrayValue ?? []).compactMap(SlowRequest.init)
    let head = ["SECONDS AGO", "BDEV", "KIND", "OFFSET", "LENGTH", "WAITING us", "SERVING us", "ERROR", "ASKED BY"]
    let body = requests.map { request in
      [
        "\((now &- min(now, request.ended)) / 1_000_000_000)", request.alias ?? request.device, request.kind,
        "\(request.offset)",
        "\(request.length)", "\(request.waiting)", "\(request.serving)", request.error == 0 ? "-" : "\(request.error)",
        request.asker,
      ]
    }
    let threshold = answer["threshold_us"]?.int64Value ?? 0
    let total = answer["total"]?.int64Value ?? 0
    let last =
      threshold == 0
      ? "off: bdev_set_slow_io sets a threshold"
      : "\(total) requests took \(threshold) us or longer, the last \(requests.count) are shown"
    return TextTable.lines([head] + body, leftAligned: [1, 2, 8]) + [last]
  }
}

extension SlowRequest {
  init(_ entry: SlowTrace.Entry) {
    let kinds: [BlockIO.Kind: String] = [
      .read: "read", .write: "write", .flush: "flush", .unmap: "unmap", .writeZeroes: "write_zeroes",
    ]
    kind = kinds[entry.kind] ?? ""
    ended = entry.ended
    device = entry.device.text
    offset = entry.offset
    length = entry.length
    waiting = entry.waited / 1000
    serving = entry.served / 1000
    error = Int(-entry.result)
    asker = entry.asker.text
  }
}
