import Dispatch
import Glibc
import JSON
import JSONRPC
import Logging
import SoftHost
import Synchronization
import Telemetry
import TestSupport

/// A process and a monitor that look like a QEMU to a chassis: for what a real one does not do when it is asked to.
final class FakeQEMU: Sendable {
  /// Takes a command and answers it, at once or later; false leaves it to the defaults.
  typealias OnCommand = @Sendable (_ command: String, _ reply: @escaping @Sendable (JSONValue) -> Void) -> Bool

  static let done: JSONValue = ["return": [:]]
  static let refused: JSONValue = ["error": ["class": "GenericError", "desc": "not now"]]

  let process: ChildProcess
  private let listener: Listener
  private let received = Mutex<[String]>([])

  /// SAFETY: libdispatch's objects may be used from any thread; the overlay does not say so in types.
  private struct Listener: @unchecked Sendable {
    let source: any DispatchSourceRead
  }

  /// The commands that came so far.
  var commands: [String] { received.withLock { $0 } }

  init(
    _ configuration: ChassisConfiguration, status: String = "running", hasPIDFile: Bool = true,
    onCommand: @escaping OnCommand = { _, _ in false }
  ) throws {
    let monitor = configuration.stateDirectory + "/qmp.sock"
    process = try ChildProcess(
      "sh", ["-c", "while :; do sleep 60; done", "qemu", "socket,id=monitor0,path=\(monitor),server=on,wait=off"])
    // A program has no command line in the first moment after it was started; a QEMU with a pid file has.
    var attempts = 0
    while contentsOfFile("/proc/\(process.pid)/cmdline")?.contains(monitor) != true {
      attempts += 1
      guard attempts < 10_000 else { throw TestEnvironmentError("the stand-in for QEMU did not start") }
      usleep(1000)
    }
    if hasPIDFile {
      let file = open(configuration.stateDirectory + "/qemu.pid", O_WRONLY | O_CREAT | O_TRUNC, 0o600)
      let text = Array("\(process.pid)\n".utf8)
      guard text.withUnsafeBytes({ write(file, $0.baseAddress, $0.count) }) == text.count else {
        throw TestEnvironmentError("cannot write a pid file")
      }
      close(file)
    }
    let descriptor = try UnixSocket.listen(path: monitor)
    listener = Listener(source: DispatchSource.makeReadSource(fileDescriptor: descriptor))
    listener.source.setCancelHandler { close(descriptor) }
    let receive: @Sendable (String, @escaping @Sendable (JSONValue) -> Void) -> Void = { [weak self] command, reply in
      self?.received.withLock { $0.append(command) }
      guard !onCommand(command, reply) else { return }
      switch command {
      case "query-version": reply(["return": ["qemu": ["major": 9, "minor": 2, "micro": 0]]])
      case "query-status": reply(["return": ["status": .string(status)]])
      case "qom-list": reply(["return": []])
      default: reply(FakeQEMU.done)
      }
    }
    listener.source.setEventHandler {
      let socket = accept(descriptor, nil, nil)
      guard socket >= 0 else { return }
      _ = fcntl(socket, F_SETFL, O_NONBLOCK)
      let relay = Relay()
      let connection = JSONConnection(
        adopting: socket, maximumLength: 1 << 20,
        onValue: { value in
          guard let command = value["execute"]?.stringValue, let connection = relay.connection else { return }
          receive(command) { answer in
            var answer = answer
            answer["id"] = value["id"]
            try? connection.send(answer, operation: "answer")
          }
        },
        onClose: { _ in relay.set(nil) })
      relay.set(connection)
      connection.start()
    }
    listener.source.resume()
  }

  deinit {
    listener.source.cancel()
    process.kill()
  }

  /// Lets the callbacks of a connection reach it.
  private final class Relay: Sendable {
    private let box = Mutex<JSONConnection?>(nil)
    var connection: JSONConnection? { box.withLock { $0 } }
    func set(_ connection: JSONConnection?) { box.withLock { $0 = connection } }
  }
}

/// The state of a chassis, as an earlier process left it, and a chassis that is made of it.
struct LeftChassis {
  let directory: TemporaryDirectory
  let configuration: ChassisConfiguration

  init(isOn: Bool, boot: BootSetting = BootSetting()) throws {
    directory = try TemporaryDirectory()
    configuration = ChassisConfiguration(
      name: "left-1", busDirectory: directory.file("bus"), stateDirectory: directory.file("state"))
    guard mkdir(configuration.stateDirectory, 0o700) == 0 else {
      throw TestEnvironmentError("cannot make a directory")
    }
    let record: JSONValue = [
      "uuid": "4c4c4544-0000-4000-8000-000000000001", "power": isOn ? "on" : "off",
      "bootEnabled": .string(boot.enabled.rawValue), "bootTarget": .string(boot.target.rawValue),
    ]
    try directory.write("state/chassis.json", String(decoding: record.serialize(), as: UTF8.self))
  }

  /// What is remembered now.
  var record: JSONValue? {
    contentsOfFile(configuration.stateDirectory + "/chassis.json").flatMap { try? JSONValue.parse(Array($0.utf8)) }
  }

  func open() throws -> Chassis {
    var logger = Logger(label: "test")
    logger.logLevel = .critical
    return try Chassis(
      configuration: configuration, started: Doorbell(), metrics: SoftHostMetrics(MetricsRegistry()), logger: logger)
  }

  /// Runs `body` beside a chassis that runs, and ends it.
  func withRunning(_ body: (Chassis) async throws -> Void) async throws {
    let chassis = try open()
    let running = Task { try await chassis.run() }
    do {
      try await body(chassis)
    } catch {
      running.cancel()
      throw error
    }
    running.cancel()
    try await running.value
  }
}
