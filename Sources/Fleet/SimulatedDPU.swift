package import BareMetal
package import DPU
import IaaS
import Kubernetes
import Synchronization

#if canImport(Glibc)
  import Glibc
#elseif canImport(Musl)
  import Musl
#endif

/// A DPU in memory: the data plane and the network of one server that is not there.
package final class SimulatedDPU: DPU, NetworkPlugger, SeedStore {
  private struct State {
    var random: SeededRandom
    var volumes: [String: BlockVolume] = [:]
    var functions: [String: BlockFunction] = [:]
    var interfaces: [Int: PluggedInterface] = [:]
    var silentUntil: ContinuousClock.Instant?
    var starts = 1
  }

  package let directory: String
  private let host: String
  private let delay: TriangularDelay
  private let hasFiles: Bool
  private let state: Mutex<State>
  private static let blockSize = 512

  /// - Parameters:
  ///   - delay: How long each change takes.
  ///   - hasFiles: Whether volumes are files that this process can see. Otherwise they are taken to be there, with 1 GiB.
  package init(host: String, seed: UInt64, delay: TriangularDelay, hasFiles: Bool) {
    self.host = host
    self.delay = delay
    self.hasFiles = hasFiles
    directory = "/simulated/\(host)"
    state = Mutex(State(random: SeededRandom(seed: seed, part: "dpu \(host)")))
  }

  /// The DPU starts anew: what it showed is gone, and it is silent until then.
  package func reboot(silentFor time: Duration) {
    state.withLock { state in
      state.volumes = [:]
      state.functions = [:]
      state.interfaces = [:]
      state.silentUntil = .now + time
      state.starts += 1
    }
  }

  /// Whether it is up.
  package var answers: Bool { state.withLock { state in state.silentUntil.map { $0 <= .now } ?? true } }

  private func look<R>(_ operation: String, _ body: (inout State) throws -> R) throws -> R {
    try state.withLock { state in
      if let until = state.silentUntil {
        guard until <= .now else {
          throw DPUError(code: .unavailable, operation: operation, message: "the DPU starts anew")
        }
        state.silentUntil = nil
      }
      return try body(&state)
    }
  }

  private func change<R>(_ operation: String, _ body: (inout State) throws -> R) async throws -> R {
    let time = state.withLock { state in delay.sample(&state.random) }
    if time > .zero { try await Task.sleep(for: time) }
    return try look(operation, body)
  }

  // MARK: Disks

  package func version() async throws -> String { try look("read the version") { _ in "simulated 1" } }

  package func volumes() async throws -> [BlockVolume] {
    try look("list volumes") { state in state.volumes.values.sorted { $0.name < $1.name } }
  }

  package func functions() async throws -> [BlockFunction] {
    try look("list functions") { state in state.functions.values.sorted { $0.name < $1.name } }
  }

  package func createVolume(name: String, file: String, readOnly: Bool, shared: Bool) async throws {
    let operation = "create volume \(name)"
    let bytes = try size(of: file, operation)
    try await change(operation) { state in
      if let present = state.volumes[name] {
        guard present.file == file, present.readOnly == readOnly else {
          throw DPUError(code: .conflict, operation: operation, message: "it is there with the file \(present.file)")
        }
        return
      }
      state.volumes[name] = BlockVolume(
        name: name, file: file, blockSize: Self.blockSize, blockCount: bytes / UInt64(Self.blockSize),
        readOnly: readOnly)
    }
  }

  private func size(of file: String, _ operation: String) throws -> UInt64 {
    guard hasFiles, !file.hasPrefix(directory + "/") else { return 1 << 30 }
    var information = stat()
    guard stat(file, &information) == 0 else {
      throw DPUError(code: .notFound, operation: operation, message: "there is no file \(file)")
    }
    return UInt64(max(0, information.st_size))
  }

  package func deleteVolume(name: String) async throws {
    let operation = "delete volume \(name)"
    try await change(operation) { state in
      guard !state.functions.values.contains(where: { $0.volume == name }) else {
        throw DPUError(code: .busy, operation: operation, message: "a function shows it")
      }
      state.volumes[name] = nil
    }
  }

  package func rescanVolume(name: String) async throws {
    let operation = "rescan volume \(name)"
    let file = try look(operation) { state in state.volumes[name]?.file }
    guard let file else { throw DPUError(code: .notFound, operation: operation, message: "there is no such volume") }
    let bytes = try size(of: file, operation)
    try await change(operation) { state in state.volumes[name]?.blockCount = bytes / UInt64(Self.blockSize) }
  }

  package func plug(function: String, volume: String, readOnly: Bool) async throws {
    let operation = "plug \(function)"
    try await change(operation) { state in
      guard state.volumes[volume] != nil else {
        throw DPUError(code: .notFound, operation: operation, message: "there is no volume \(volume)")
      }
      let wanted = BlockFunction(name: function, volume: volume, readOnly: readOnly)
      guard state.functions[function].map({ $0 == wanted }) ?? true else {
        throw DPUError(code: .conflict, operation: operation, message: "it shows another volume")
      }
      state.functions[function] = wanted
    }
  }

  package func limitVolume(name: String, _ limits: VolumeLimits) async throws {
    let operation = "limit volume \(name)"
    try await change(operation) { state in
      guard state.volumes[name] != nil else {
        throw DPUError(code: .notFound, operation: operation, message: "there is no such volume")
      }
      state.volumes[name]?.limits = limits
    }
  }

  /// Guests that are not there write nothing, so that clones of the files are of one moment whenever they are made.
  package func snapshot(into folder: String, files: [String: String]) async throws -> GroupSnapshotTimes {
    let operation = "take the snapshot \(folder)"
    let sources = try await change(operation) { state in
      try files.map { volume, file in
        guard let present = state.volumes[volume] else {
          throw DPUError(code: .notFound, operation: operation, message: "there is no volume \(volume)")
        }
        return (present.file, file)
      }
    }
    if hasFiles { try Self.clone(sources, into: folder, operation: operation) }
    let now = MicroTimestamp.now()
    return GroupSnapshotTimes(takenAt: now.microseconds, pause: 0)
  }

  private static func clone(_ files: [(from: String, to: String)], into folder: String, operation: String) throws {
    func fail(_ what: String) -> DPUError {
      let code: DPUError.Code = errno == EEXIST ? .conflict : .refused
      return DPUError(code: code, operation: operation, message: "\(what): \(String(cString: strerror(errno)))")
    }
    guard access(folder, F_OK) != 0 else {
      throw DPUError(code: .conflict, operation: operation, message: "it is there already")
    }
    let staging = "\(folder).partial"
    guard mkdir(staging, 0o700) == 0 || errno == EEXIST else { throw fail("make \(staging)") }
    for file in files {
      let source = open(file.from, O_RDONLY | O_CLOEXEC)
      guard source >= 0 else { throw fail("open \(file.from)") }
      defer { close(source) }
      let clone = open("\(staging)/\(file.to)", O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0o600)
      guard clone >= 0 else { throw fail("make \(file.to)") }
      defer { close(clone) }
      // FICLONE, ioctl_ficlone(2).
      guard ioctl(clone, 0x4004_9409, source) == 0 else { throw fail("clone \(file.from)") }
    }
    guard rename(staging, folder) == 0 else { throw fail("name \(folder)") }
  }

  /// Guests that are not there hold on to nothing.
  package func unplug(function: String, force: Bool) async throws {
    try await change("unplug \(function)") { state in state.functions[function] = nil }
  }

  // MARK: The network

  package func plugged() async throws -> [PluggedInterface] {
    try look("list interfaces") { state in state.interfaces.values.sorted { $0.index < $1.index } }
  }

  package func plug(index: Int, _ interface: GuestInterface) async throws {
    try await change("plug interface \(interface.name)") { state in
      state.interfaces[index] = PluggedInterface(
        index: index, name: interface.name, mac: interface.mac, tap: "sim\(index)")
    }
  }

  package func unplug(_ interface: PluggedInterface) async throws {
    try await change("unplug interface \(interface.name)") { state in state.interfaces[interface.index] = nil }
  }

  // MARK: Seed disks

  package func make(for data: BootData) async throws -> String { SeedDisk(directory: directory).path(for: data) }

  package func removeOthers(than path: String?) throws {}
}
