import GRPCCore
import GRPCNIOTransportHTTP2Posix
import OPI
import SwiftProtobuf

/// A DPU that is driven over OPI's storage API: `ycloud opi-bridge`, or the bridge of a card's maker that also serves
/// `ycloud.storage.v1.VolumeService`.
public final class OPIClient: DPU {
  /// Where the API is served.
  public enum Address: Sendable, Hashable {
    case unix(String)
    /// TLS with a certificate of the client's own. All files are PEM.
    case tls(host: String, port: Int, certificate: String, key: String, authority: String)
  }

  private let client: GRPCClient<HTTP2ClientTransport.Posix>
  private let volumeService: YCVolumeService.Client<HTTP2ClientTransport.Posix>
  private let disks: OPIFrontendVirtioBlkService.Client<HTTP2ClientTransport.Posix>
  private let qualities: OPIMiddleendQosVolumeService.Client<HTTP2ClientTransport.Posix>
  private let options: CallOptions

  /// The most that one page of a list has.
  private static let pageSize: Int32 = 250

  /// - Parameter timeout: how long one call may take; longer than what the bridge gives its data plane.
  public init(_ address: Address, timeout: Duration = .seconds(25)) throws {
    var options = CallOptions.defaults
    options.timeout = timeout
    // A bridge that is away is an answer of its own: the caller has its own pace for trying again.
    options.waitForReady = false
    self.options = options
    client = GRPCClient(transport: try Self.transport(address))
    volumeService = YCVolumeService.Client(wrapping: client)
    disks = OPIFrontendVirtioBlkService.Client(wrapping: client)
    qualities = OPIMiddleendQosVolumeService.Client(wrapping: client)
  }

  private static func transport(_ address: Address) throws -> HTTP2ClientTransport.Posix {
    let configure: @Sendable (inout HTTP2ClientTransport.Posix.Config) -> Void = { config in
      config.backoff = .init(initial: .milliseconds(100), max: .seconds(2), multiplier: 1.6, jitter: 0.2)
    }
    switch address {
    case .unix(let path):
      return try HTTP2ClientTransport.Posix(
        target: .unixDomainSocket(path: path, authority: "localhost"), transportSecurity: .plaintext,
        config: .defaults(configure: configure))
    case .tls(let host, let port, let certificate, let key, let authority):
      return try HTTP2ClientTransport.Posix(
        target: .dns(host: host, port: port),
        transportSecurity: .mTLS(
          certificateChain: [.file(path: certificate, format: .pem)], privateKey: .file(path: key, format: .pem)
        ) { $0.trustRoots = .certificates([.file(path: authority, format: .pem)]) },
        config: .defaults(configure: configure))
    }
  }

  /// Keeps the connection; calls wait until this runs. Ends when the task is cancelled.
  public func run() async throws { try await client.runConnections() }

  // MARK: Reading

  public func version() async throws -> String {
    try await translated("read version") {
      try await self.volumeService.getTarget(YCGetTargetRequest(), options: self.options).version
    }
  }

  public func volumes() async throws -> [BlockVolume] {
    let limits = try await limits()
    return try await translated("list volumes") {
      try await self.pages { token in
        let page = try await self.volumeService.listVolumes(
          .with {
            $0.pageSize = Self.pageSize
            $0.pageToken = token
          }, options: self.options)
        return (page.volumes, page.nextPageToken)
      }.map { volume in
        let blockSize = max(1, Int(volume.blockSize))
        let name = Self.id(of: volume.name)
        return BlockVolume(
          name: name, file: volume.file, blockSize: blockSize,
          blockCount: UInt64(max(0, volume.capacityBytes)) / UInt64(blockSize), readOnly: volume.readOnly,
          limits: limits[name] ?? VolumeLimits())
      }.sorted { $0.name < $1.name }
    }
  }

  public func functions() async throws -> [BlockFunction] {
    // A disk is as writable as its volume; OPI has no word for it at the disk.
    let readOnly = Set(try await volumes().filter(\.readOnly).map(\.name))
    return try await translated("list functions") {
      try await self.listDisks().map { disk in
        let volume = Self.id(of: disk.volumeNameRef)
        return BlockFunction(name: Self.id(of: disk.name), volume: volume, readOnly: readOnly.contains(volume))
      }.sorted { $0.name < $1.name }
    }
  }

  private func listDisks() async throws -> [OPIVirtioBlk] {
    try await pages { token in
      let page = try await self.disks.listVirtioBlks(
        .with {
          $0.pageSize = Self.pageSize
          $0.pageToken = token
        }, options: self.options)
      return (page.virtioBlks, page.nextPageToken)
    }
  }

  /// A server that never ends its list is cut off.
  private func pages<Element: Sendable>(
    _ page: (String) async throws -> (elements: [Element], next: String)
  ) async throws -> [Element] {
    var all: [Element] = []
    var token = ""
    repeat {
      let (elements, next) = try await page(token)
      all += elements
      token = next
      guard all.count <= 100_000 else {
        throw RPCError(code: .resourceExhausted, message: "the list has more than 100000 entries")
      }
    } while !token.isEmpty
    return all
  }

  // MARK: Volumes

  public func createVolume(name: String, file: String, readOnly: Bool, shared: Bool) async throws {
    try await translated("create volume \(name)") {
      _ = try await self.volumeService.createVolume(
        .with {
          $0.volumeID = name
          $0.volume.file = file
          $0.volume.readOnly = readOnly
          $0.volume.shared = shared
        }, options: self.options)
    }
  }

  public func deleteVolume(name: String) async throws {
    // Its limits are a resource of their own, which holds it.
    if try await limits()[name] != nil { try await limitVolume(name: name, VolumeLimits()) }
    try await translated("delete volume \(name)") {
      _ = try await self.volumeService.deleteVolume(
        .with {
          $0.name = "volumes/\(name)"
          $0.allowMissing = true
        }, options: self.options)
    }
  }

  public func rescanVolume(name: String) async throws {
    try await translated("rescan volume \(name)") {
      _ = try await self.volumeService.growVolume(.with { $0.name = "volumes/\(name)" }, options: self.options)
    }
  }

  // MARK: Limits

  /// The key of a deletion's gRPC metadata by which a server is cut off from its disk.
  public static let forceKey = "ycloud-force"

  private static func quality(_ volume: String) -> String { "qosVolumes/\(volume)" }

  /// The limits in effect, by volume. A bridge without the service has none.
  private func limits() async throws -> [String: VolumeLimits] {
    do {
      let listed = try await translated("list limits") {
        try await self.pages { token in
          let page = try await self.qualities.listQosVolumes(
            .with {
              $0.pageSize = Self.pageSize
              $0.pageToken = token
            }, options: self.options)
          return (page.qosVolumes, page.nextPageToken)
        }
      }
      let own = listed.filter { Self.id(of: $0.name) == Self.id(of: $0.volumeNameRef) }
      return Dictionary(
        own.map { (Self.id(of: $0.volumeNameRef), VolumeLimits($0.limits.max)) },
        uniquingKeysWith: { first, _ in first })
    } catch let error as DPUError where error.code == .unsupported {
      return [:]
    }
  }

  public func limitVolume(name: String, _ limits: VolumeLimits) async throws {
    try await translated("limit volume \(name)") {
      guard !limits.isNone else {
        _ = try await self.qualities.deleteQosVolume(
          .with {
            $0.name = Self.quality(name)
            $0.allowMissing = true
          }, options: self.options)
        return
      }
      let wanted = OPIQosVolume.with {
        $0.name = Self.quality(name)
        $0.volumeNameRef = "volumes/\(name)"
        $0.limits.max = OPIQosLimit(limits)
      }
      // Made where it is missing; all of it, so that a limit that is no more is lifted.
      _ = try await self.qualities.updateQosVolume(
        .with {
          $0.qosVolume = wanted
          $0.updateMask = .with { $0.paths = ["*"] }
          $0.allowMissing = true
        }, options: self.options)
    }
  }

  public func snapshot(into folder: String, files: [String: String]) async throws -> GroupSnapshotTimes {
    try await translated("take the snapshot \(folder)") {
      let answer = try await self.volumeService.snapshotFiles(
        .with { request in
          request.folder = folder
          request.files = files.sorted { $0.key < $1.key }.map { volume, file in
            .with {
              $0.name = "volumes/\(volume)"
              $0.file = file
            }
          }
        }, options: self.options)
      return GroupSnapshotTimes(takenAt: answer.takenAtUs, pause: answer.pauseUs)
    }
  }

  // MARK: Functions

  public func plug(function: String, volume: String, readOnly: Bool) async throws {
    try await translated("plug \(function)") {
      let shown = try await self.volumeService.getVolume(.with { $0.name = "volumes/\(volume)" }, options: self.options)
      guard shown.readOnly == readOnly else {
        throw RPCError(
          code: .alreadyExists,
          message: "the volume \(volume) is \(shown.readOnly ? "read-only" : "writable"), and the disk is not to be")
      }
      let present = try await self.listDisks()
      let place =
        present.first { $0.name == "virtioBlks/\(function)" && $0.hasPcieID }?.pcieID ?? Self.freePlace(present)
      _ = try await self.disks.createVirtioBlk(
        .with {
          $0.virtioBlkID = function
          $0.virtioBlk.volumeNameRef = "volumes/\(volume)"
          $0.virtioBlk.pcieID = place
        }, options: self.options)
    }
  }

  /// The first virtual function that no disk has.
  private static func freePlace(_ disks: [OPIVirtioBlk]) -> OPIPciEndpoint {
    let taken = Set(disks.filter(\.hasPcieID).map(\.pcieID.virtualFunction.value))
    return OPIPciEndpoint.with {
      $0.portID = 0
      $0.physicalFunction = 0
      $0.virtualFunction = Google_Protobuf_Int32Value((Int32(1)...Int32.max).first { !taken.contains($0) } ?? 0)
    }
  }

  public func unplug(function: String, force: Bool) async throws {
    try await translated("unplug \(function)") {
      // OPI has no word for it; a bridge that does not know this one asks the server all the same.
      var metadata = Metadata()
      if force { metadata.addString("true", forKey: Self.forceKey) }
      _ = try await self.disks.deleteVirtioBlk(
        .with {
          $0.name = "virtioBlks/\(function)"
          $0.allowMissing = true
        }, metadata: metadata, options: self.options)
    }
  }

  // MARK: Names and errors

  private static func id(of name: String) -> String {
    name.lastIndex(of: "/").map { String(name[name.index(after: $0)...]) } ?? name
  }

  private func translated<Value>(_ operation: String, _ body: () async throws -> Value) async throws -> Value {
    do {
      return try await body()
    } catch let error as RPCError {
      // Whose task was cancelled learns that, and not what the call made of it.
      if error.code == .cancelled { try Task.checkCancellation() }
      throw DPUError(code: Self.code(error.code), operation: operation, message: error.message)
    } catch let error as RuntimeError {
      throw DPUError(code: .unavailable, operation: operation, message: error.message)
    }
  }

  private static func code(_ code: RPCError.Code) -> DPUError.Code {
    switch code {
    case .unavailable, .resourceExhausted: .unavailable
    case .deadlineExceeded, .cancelled: .timeout
    case .alreadyExists: .conflict
    case .notFound: .notFound
    case .failedPrecondition: .busy
    case .unimplemented: .unsupported
    case .internalError, .dataLoss, .unknown: .malformed
    default: .refused
    }
  }
}

extension VolumeLimits {
  /// OPI counts requests in thousands.
  init(_ limit: OPIQosLimit) {
    self.init(
      iops: limit.rwIopsKiops &* 1000, bandwidth: limit.rwBandwidthMbs, readBandwidth: limit.rdBandwidthMbs,
      writeBandwidth: limit.wrBandwidthMbs)
  }
}

extension OPIQosLimit {
  init(_ limits: VolumeLimits) {
    self.init()
    rwIopsKiops = limits.iops / 1000
    rwBandwidthMbs = limits.bandwidth
    rdBandwidthMbs = limits.readBandwidth
    wrBandwidthMbs = limits.writeBandwidth
  }
}
