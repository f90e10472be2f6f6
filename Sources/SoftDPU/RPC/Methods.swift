import Dispatch
import Glibc
import JSON
import JSONRPC
import Logging
import Synchronization

/// SPDK's JSON-RPC methods, as far as this data plane has them, with SPDK's parameters, results and errors.
struct Methods: Sendable {
  typealias Reply = @Sendable (Result<JSONValue, ResponseError>) -> Void
  typealias Method = @Sendable (_ methods: Methods, _ request: Request, _ reply: @escaping Reply) throws -> Void

  let inventory: Inventory
  /// What `spdk_get_version` calls this program.
  let version: String
  /// Failures are not told.
  private(set) var isQuiet = false

  init(inventory: Inventory, version: String) {
    self.inventory = inventory
    self.version = version
  }

  static let table: [String: Method] = [
    application, devices, files, memory, layers, lvols, vhost, nbd, nvmf, nvme, crypto, slow, groupSnapshots,
  ].reduce(into: [:]) { $0.merge($1) { first, _ in first } }

  /// Answers one request. No answer leaves before what was changed until then is on disk: not one that tells of a
  /// change, and not one that shows what another call has just changed.
  func handle(_ request: Request, _ reply: @escaping Reply) {
    let reply: Reply = { result in
      inventory.whenDurable { failure in
        guard let failure else { return reply(result) }
        reply(.failure(notWrittenDown(failure, request.method)))
      }
    }
    guard let method = Methods.table[request.method] else { return reply(.failure(.methodNotFound)) }
    do {
      try method(self, request, reply)
    } catch {
      reply(.failure(answer(error, request.method)))
    }
  }

  /// The answer where the disk failed after the system had taken the bytes: what the call did is there, and is not to be
  /// undone, as others may have seen it. The next change writes all of it anew.
  private func notWrittenDown(_ error: SoftDPUError, _ method: String) -> ResponseError {
    inventory.logger.error("the configuration is not on disk", metadata: ["method": "\(method)", "error": "\(error)"])
    return ResponseError(
      code: -Int(error.errorNumber),
      message: "\(systemText(error.errorNumber)): what is configured is in effect but not on disk "
        + "(\(error.operation)); the next change writes it again")
  }

  /// The answer to a request that failed.
  func answer(_ error: any Error, _ method: String) -> ResponseError {
    switch error {
    case let error as ResponseError: return error
    case is Parameters.Failure: return Methods.undecodable
    case let error as SoftDPUError:
      if !isQuiet {
        inventory.logger.warning("a call failed", metadata: ["method": "\(method)", "error": "\(error)"])
      }
      return Methods.systemError(error.errorNumber)
    default: return .internalError("\(error)")
    }
  }

  /// What SPDK answers where parameters do not decode.
  static let undecodable = ResponseError.internalError("spdk_json_decode_object failed")

  /// Most of SPDK's methods answer with the negative error number and its text.
  static func systemError(_ number: CInt) -> ResponseError {
    ResponseError(code: -Int(number), message: systemText(number))
  }

  /// Runs `body`; its errors have the code "invalid parameters" and the text of their number, as many of SPDK's methods
  /// answer.
  func withInvalidParameters<Value>(_ method: String, _ body: () throws -> Value) throws -> Value {
    do {
      return try body()
    } catch let error as SoftDPUError {
      if !isQuiet {
        inventory.logger.warning("a call failed", metadata: ["method": "\(method)", "error": "\(error)"])
      }
      throw ResponseError.invalidParams(systemText(error.errorNumber))
    }
  }

  // MARK: Restoring

  /// Makes again what the last process had. A call that fails is told, and stays written down for the next start.
  func restore() throws(SoftDPUError) {
    try inventory.restoreKeys()
    let calls = try inventory.savedCalls()
    let remotes = RemoteStart()
    inventory.withoutSaving {
      // Remote disks first, all at a time: what is near does not wait long for what is far.
      for paths in Methods.remotePaths(calls) { begin(paths[...], remotes) }
      remotes.wait(atMost: Methods.remoteTime)
      for call in calls where call.method != Methods.attachMethod { restore(call) }
    }
    inventory.nvmf.open()
    inventory.removeOrphans()
    guard !calls.isEmpty else { return }
    inventory.logger.info(
      "configuration restored",
      metadata: ["bdevs": "\(inventory.devices.count)", "controllers": "\(inventory.controllers.count)"])
  }

  private static let attachMethod = "bdev_nvme_attach_controller"
  /// How long the start waits for remote disks, and how many seconds until what is missing is
  /// tried again.
  private static let remoteTime = DispatchTimeInterval.seconds(2)
  private static let retryTime = 2
  private static let longestRetryTime = 16

  /// The calls that connect remote disks: for each of them its paths, in their order.
  private static func remotePaths(_ calls: [ConfigurationCall]) -> [[ConfigurationCall]] {
    Dictionary(grouping: calls.filter { $0.method == attachMethod }, by: \.subject).sorted { $0.key < $1.key }.map(
      \.value)
  }

  /// Begins to connect a remote disk, path after path. One that does not answer in time goes on alone; what fails is
  /// tried again.
  private func begin(_ paths: ArraySlice<ConfigurationCall>, _ remotes: RemoteStart) {
    guard let call = paths.first else { return }
    remotes.begin()
    handle(Request(id: .null, method: call.method, params: call.parameters)) { result in
      if case .failure(let error) = result {
        tell(call, error)
        inventory.keep(unrestored: call)
      }
      begin(paths.dropFirst(), remotes)
      remotes.end()
    }
  }

  /// Tries again, now and then, to bring back what was missing at the start: a remote disk that was away, and what rests
  /// on it. `run` has a body run between two requests.
  func retryUnrestored(
    after seconds: Int = Methods.retryTime, _ run: @escaping @Sendable (@escaping @Sendable () -> Void) -> Void
  ) {
    DispatchQueue.global().asyncAfter(deadline: .now() + .seconds(seconds)) { [inventory] in
      guard !inventory.isClosed else { return }
      run {
        let missing = inventory.unrestored
        retry(missing) {
          // Less often where nothing has come back.
          let isSame = inventory.unrestored == missing && !missing.isEmpty
          let next = isSame ? min(2 * seconds, Methods.longestRetryTime) : Methods.retryTime
          retryUnrestored(after: next, run)
        }
      }
    }
  }

  /// One attempt for all that is missing, remote disks at a time, then the rest.
  private func retry(_ calls: [ConfigurationCall], _ then: @escaping @Sendable () -> Void) {
    let remotes = DispatchGroup()
    for paths in Methods.remotePaths(calls) {
      remotes.enter()
      attempt(paths[...]) { remotes.leave() }
    }
    // What rests on a remote disk has its turn with the next attempt.
    for call in calls where call.method != Methods.attachMethod { attempt(call) {} }
    remotes.notify(queue: .global(), execute: then)
  }

  private func attempt(_ paths: ArraySlice<ConfigurationCall>, _ then: @escaping @Sendable () -> Void) {
    guard let call = paths.first else { return then() }
    attempt(call) { attempt(paths.dropFirst(), then) }
  }

  private func attempt(_ call: ConfigurationCall, _ then: @escaping @Sendable () -> Void) {
    guard let method = Methods.table[call.method] else { return then() }
    let name = call.subject
    let reply: Reply = { [inventory] result in
      if case .success = result {
        inventory.logger.info("restored after all", metadata: ["method": "\(call.method)", "name": "\(name)"])
      }
      then()
    }
    // Its failures were told once, at the start.
    var quiet = self
    quiet.isQuiet = true
    do {
      try method(quiet, Request(id: .null, method: call.method, params: call.parameters), reply)
    } catch {
      then()
    }
  }

  private func tell(_ call: ConfigurationCall, _ error: ResponseError) {
    inventory.logger.error(
      "a part of the configuration could not be restored; it is tried again",
      metadata: ["method": "\(call.method)", "name": "\(call.subject)", "error": "\(error.message)"])
  }

  private func restore(_ call: ConfigurationCall) {
    let request = Request(id: .null, method: call.method, params: call.parameters)
    for attempt in 0... {
      let outcome = Outcome()
      handle(request) { outcome.set($0) }
      guard case .failure(let error) = outcome.wait() else { return }
      // After a kill the kernel may take a moment to let go of its requests, and with them of a file's lock or a
      // listening socket.
      let isBusy = [EBUSY, EADDRINUSE].contains { error.code == -Int($0) || error.message == systemText($0) }
      if isBusy, attempt < 100 {
        usleep(50_000)
        continue
      }
      tell(call, error)
      inventory.keep(unrestored: call)
      return
    }
  }
}

/// Remote disks that are being connected while the process starts.
private final class RemoteStart: Sendable {
  private let group = DispatchGroup()

  func begin() { group.enter() }
  func end() { group.leave() }
  func wait(atMost time: DispatchTimeInterval) { _ = group.wait(timeout: .now() + time) }
}

/// What a method answers, at once or in a moment.
private final class Outcome: Sendable {
  private let state = Mutex<Result<JSONValue, ResponseError>?>(nil)
  private let latch = Latch()

  func wait() -> Result<JSONValue, ResponseError>? {
    latch.wait()
    return state.withLock { $0 }
  }

  func set(_ value: Result<JSONValue, ResponseError>) {
    state.withLock { $0 = value }
    latch.open()
  }
}
