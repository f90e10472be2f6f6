/// What is exported at one address.
package struct NBDExport: Sendable, Hashable {
  package var name: String
  /// In bytes.
  package var size: UInt64
  package var blockSize: UInt32
  package var isReadOnly: Bool
  package var canTrim: Bool
  package var canWriteZeroes: Bool
  /// Only clients with TLS get it.
  package var requiresTLS: Bool

  package init(
    name: String, size: UInt64, blockSize: UInt32, isReadOnly: Bool, canTrim: Bool, canWriteZeroes: Bool,
    requiresTLS: Bool = false
  ) {
    self.name = name
    self.size = size
    self.blockSize = blockSize
    self.isReadOnly = isReadOnly
    self.canTrim = canTrim
    self.canWriteZeroes = canWriteZeroes
    self.requiresTLS = requiresTLS
  }

  var transmissionFlags: UInt16 {
    typealias Flags = NBD.TransmissionFlags
    var flags = Flags.hasFlags | Flags.sendFlush | Flags.sendFUA | Flags.sendDF | Flags.canMultiConn
    if isReadOnly { flags |= Flags.readOnly }
    if canTrim { flags |= Flags.sendTrim }
    if canWriteZeroes { flags |= Flags.sendWriteZeroes | Flags.sendFastZero }
    return flags
  }
}

/// The server's side of the negotiation: bytes in, bytes and a decision out. Nothing here does I/O.
package struct NBDHandshake: Sendable {
  /// What to do after the answer has been sent.
  package enum Next: Sendable, Hashable {
    /// Wait for more bytes.
    case more
    /// Begin TLS, then go on negotiating. Bytes that came before that in clear text end the connection.
    case startTLS
    /// Send the list of these exports (`NBDListing`).
    case list([String])
    /// Serve the export.
    case serve(export: String, hasStructuredReplies: Bool, hasAllocationContext: Bool)
    /// End the connection.
    case close
  }

  private enum Phase { case flags, options }

  /// The specification's modes of operation: no TLS (NOTLS); TLS for those who want it, and for exports that require it
  /// (SELECTIVETLS); nothing without TLS (FORCEDTLS).
  package enum TLSPolicy: Sendable { case none, selective, required }

  /// The longest message of a client.
  static let maximumMessage = 16 + Int(NBD.maximumOptionLength)

  private var phase = Phase.flags
  private let tls: TLSPolicy
  private var isEncrypted = false
  private var hasNoZeroes = false
  private var hasStructuredReplies = false
  /// The export for which the metadata context was chosen.
  private var contextExport: String?

  package init(tls: TLSPolicy) { self.tls = tls }

  /// What the server says first.
  package static var greeting: [UInt8] {
    var writer = BigEndianWriter()
    writer.u64(NBD.initMagic)
    writer.u64(NBD.optionMagic)
    writer.u16(NBD.fixedNewstyle | NBD.noZeroes)
    return writer.bytes
  }

  /// Takes one message out of `bytes`: how many of them it was (0 where it is not complete), what to answer, and what
  /// comes next. `find` gives the export of a name, and `names` lists all.
  package mutating func take(
    _ bytes: [UInt8], find: (String) -> NBDExport?, names: () -> [String]
  ) -> (consumed: Int, answer: [UInt8], next: Next) {
    var reader = BigEndianReader(bytes)
    switch phase {
    case .flags:
      guard let flags = reader.u32() else { return (0, [], .more) }
      guard flags & UInt32(NBD.fixedNewstyle) != 0, flags & ~UInt32(NBD.fixedNewstyle | NBD.noZeroes) == 0 else {
        return (4, [], .close)
      }
      hasNoZeroes = flags & UInt32(NBD.noZeroes) != 0
      phase = .options
      return (4, [], .more)
    case .options:
      guard let magic = reader.u64(), let number = reader.u32(), let length = reader.u32() else {
        return (0, [], .more)
      }
      guard magic == NBD.optionMagic, length <= NBD.maximumOptionLength else { return (bytes.count, [], .close) }
      guard let data = reader.bytes(Int(length)) else { return (0, [], .more) }
      let (answer, next) = option(number, data, find, names)
      return (16 + Int(length), answer, next)
    }
  }

  private mutating func option(
    _ number: UInt32, _ data: [UInt8], _ find: (String) -> NBDExport?, _ names: () -> [String]
  ) -> ([UInt8], Next) {
    let option = NBD.Option(rawValue: number)
    if tls == .required, !isEncrypted {
      switch option {
      case .startTLS, .abort: break
      // It has no way to be refused but the end.
      case .exportName: return ([], .close)
      default: return (reply(number, NBD.OptionReply.tlsRequired), .more)
      }
    }
    guard let option else { return (reply(number, NBD.OptionReply.unsupported), .more) }
    switch option {
    case .exportName: return exportName(data, find)
    case .abort: return (reply(number, NBD.OptionReply.ack), .close)
    case .list:
      guard data.isEmpty else { return (reply(number, NBD.OptionReply.invalid), .more) }
      let all = names()
      // Those that cannot be had without TLS are not told of without it.
      let isHidden = tls == .selective && !isEncrypted
      return ([], .list(isHidden ? all.filter { find($0)?.requiresTLS == false } : all))
    case .startTLS:
      guard tls != .none else { return (reply(number, NBD.OptionReply.policy), .more) }
      guard !isEncrypted, data.isEmpty else { return (reply(number, NBD.OptionReply.invalid), .more) }
      isEncrypted = true
      // What was agreed on in clear text counts no more.
      hasStructuredReplies = false
      contextExport = nil
      return (reply(number, NBD.OptionReply.ack), .startTLS)
    case .info, .go: return info(number, data, isGo: option == .go, find)
    case .structuredReply:
      guard data.isEmpty else { return (reply(number, NBD.OptionReply.invalid), .more) }
      hasStructuredReplies = true
      return (reply(number, NBD.OptionReply.ack), .more)
    case .listMetaContext, .setMetaContext:
      return (metaContext(number, data, isSet: option == .setMetaContext, find), .more)
    }
  }

  private func exportName(_ data: [UInt8], _ find: (String) -> NBDExport?) -> ([UInt8], Next) {
    guard let name = String(validating: data, as: UTF8.self), let export = find(name), isShown(export) else {
      return ([], .close)
    }
    var writer = BigEndianWriter()
    writer.u64(export.size)
    writer.u16(export.transmissionFlags)
    let padding = [UInt8](repeating: 0, count: hasNoZeroes ? 0 : 124)
    return (writer.bytes + padding, serve(name))
  }

  /// Whether the client has what the export asks for.
  private func isShown(_ export: NBDExport) -> Bool { tls == .none || isEncrypted || !export.requiresTLS }

  private func serve(_ name: String) -> Next {
    .serve(
      export: name, hasStructuredReplies: hasStructuredReplies,
      hasAllocationContext: hasStructuredReplies && contextExport == name)
  }

  private func info(
    _ number: UInt32, _ data: [UInt8], isGo: Bool, _ find: (String) -> NBDExport?
  ) -> ([UInt8], Next) {
    var reader = BigEndianReader(data)
    guard let length = reader.u32(), length <= UInt32(NBD.maximumNameLength), let bytes = reader.bytes(Int(length)),
      let name = String(validating: bytes, as: UTF8.self), let count = reader.u16(),
      reader.remaining == 2 * Int(count)
    else { return (reply(number, NBD.OptionReply.invalid), .more) }
    var wanted: Set<UInt16> = []
    while let item = reader.u16() { wanted.insert(item) }
    guard let export = find(name) else { return (reply(number, NBD.OptionReply.unknown), .more) }
    guard isShown(export) else { return (reply(number, NBD.OptionReply.tlsRequired), .more) }
    var writer = BigEndianWriter()
    writer.u16(NBD.Info.export)
    writer.u64(export.size)
    writer.u16(export.transmissionFlags)
    var answer = reply(number, NBD.OptionReply.info, writer.bytes)
    if wanted.contains(NBD.Info.name) {
      var writer = BigEndianWriter()
      writer.u16(NBD.Info.name)
      answer += reply(number, NBD.OptionReply.info, writer.bytes + Array(export.name.utf8))
    }
    // Told also unasked: a client that goes below it is refused.
    writer = BigEndianWriter()
    writer.u16(NBD.Info.blockSize)
    writer.u32(export.blockSize)
    writer.u32(max(4096, export.blockSize))
    writer.u32(NBD.maximumPayload)
    answer += reply(number, NBD.OptionReply.info, writer.bytes)
    return (answer + reply(number, NBD.OptionReply.ack), isGo ? serve(name) : .more)
  }

  private mutating func metaContext(
    _ number: UInt32, _ data: [UInt8], isSet: Bool, _ find: (String) -> NBDExport?
  ) -> [UInt8] {
    if isSet { contextExport = nil }
    var reader = BigEndianReader(data)
    guard hasStructuredReplies || !isSet, let length = reader.u32(), length <= UInt32(NBD.maximumNameLength),
      let bytes = reader.bytes(Int(length)), let name = String(validating: bytes, as: UTF8.self),
      let count = reader.u32(), count <= 64
    else { return reply(number, NBD.OptionReply.invalid) }
    var queries: [String] = []
    for _ in 0..<count {
      guard let length = reader.u32(), length <= UInt32(NBD.maximumNameLength), let bytes = reader.bytes(Int(length)),
        let query = String(validating: bytes, as: UTF8.self)
      else { return reply(number, NBD.OptionReply.invalid) }
      queries.append(query)
    }
    guard reader.remaining == 0 else { return reply(number, NBD.OptionReply.invalid) }
    guard let export = find(name) else { return reply(number, NBD.OptionReply.unknown) }
    guard isShown(export) else { return reply(number, NBD.OptionReply.tlsRequired) }
    let isChosen =
      queries.contains(NBD.allocationContext) || !isSet && (queries.isEmpty || queries.contains("base:"))
    guard isChosen else { return reply(number, NBD.OptionReply.ack) }
    if isSet { contextExport = name }
    var writer = BigEndianWriter()
    writer.u32(isSet ? NBD.allocationContextID : 0)
    return reply(number, NBD.OptionReply.metaContext, writer.bytes + Array(NBD.allocationContext.utf8))
      + reply(number, NBD.OptionReply.ack)
  }

  private func reply(_ option: UInt32, _ type: UInt32, _ data: [UInt8] = []) -> [UInt8] {
    NBD.reply(option, type, data)
  }
}

/// The answer to a client that lists the exports, part by part: thousands of names are more than a socket takes at once.
package struct NBDListing: Sendable {
  private let names: [String]
  private var position = 0
  private var isFinished = false

  /// How long a part is, but for the name that goes beyond.
  package static let partLength = 16384

  package init(_ names: [String]) { self.names = names }

  /// The next part; nil after the last.
  package mutating func next() -> [UInt8]? {
    guard !isFinished else { return nil }
    let option = NBD.Option.list.rawValue
    var part: [UInt8] = []
    while position < names.count, part.count < NBDListing.partLength {
      let name = Array(names[position].utf8)
      var writer = BigEndianWriter()
      writer.u32(UInt32(name.count))
      part += NBD.reply(option, NBD.OptionReply.server, writer.bytes + name)
      position += 1
    }
    if position == names.count {
      isFinished = true
      part += NBD.reply(option, NBD.OptionReply.ack, [])
    }
    return part
  }
}

extension NBD {
  /// A server's answer to an option.
  fileprivate static func reply(_ option: UInt32, _ type: UInt32, _ data: [UInt8]) -> [UInt8] {
    var writer = BigEndianWriter()
    writer.u64(NBD.optionReplyMagic)
    writer.u32(option)
    writer.u32(type)
    writer.u32(UInt32(data.count))
    return writer.bytes + data
  }
}

/// Numbers in network order, appended.
struct BigEndianWriter {
  private(set) var bytes: [UInt8] = []
  mutating func u16(_ value: UInt16) {
    for shift in [8, 0] { bytes.append(UInt8(truncatingIfNeeded: value >> shift)) }
  }
  mutating func u32(_ value: UInt32) {
    for shift in [24, 16, 8, 0] { bytes.append(UInt8(truncatingIfNeeded: value >> UInt32(shift))) }
  }
  mutating func u64(_ value: UInt64) {
    u32(UInt32(truncatingIfNeeded: value >> 32))
    u32(UInt32(truncatingIfNeeded: value))
  }
}

/// Numbers in network order, read with bounds.
struct BigEndianReader {
  private let content: ArraySlice<UInt8>
  private var position: Int

  init(_ content: [UInt8]) {
    self.content = content[...]
    position = 0
  }

  var remaining: Int { content.count - position }

  mutating func bytes(_ count: Int) -> [UInt8]? {
    guard count <= remaining else { return nil }
    defer { position += count }
    return Array(content[position..<position + count])
  }

  private mutating func number(_ count: Int) -> UInt64? {
    bytes(count)?.reduce(0) { $0 << 8 | UInt64($1) }
  }

  mutating func u16() -> UInt16? { number(2).map { UInt16($0) } }
  mutating func u32() -> UInt32? { number(4).map { UInt32($0) } }
  mutating func u64() -> UInt64? { number(8) }
}
