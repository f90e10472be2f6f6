import Glibc
import JSON
import TestSupport
import Testing

/// A whole cloud, with real etcd, kube-apiserver and QEMU, that stands for the time of one test suite.
final class CloudUnderTest: Sendable {
  @TaskLocal static var current: CloudUnderTest?

  /// The cloud of the running suite.
  static var running: CloudUnderTest {
    get throws { try #require(current, "the suite lacks the trait .cloud(...)") }
  }

  let directory: String
  let ycloud: String
  let bmctl: String
  let bridge: String

  init(name: String) throws {
    ycloud = try TestEnvironment.builtProduct("ycloud")
    bmctl = try TestEnvironment.builtProduct("bmctl")
    directory = "/tmp/ycloud-acceptance-\(name)-\(getpid())"
    bridge = name
  }

  var kubeconfig: String { "\(directory)/kubeconfig" }

  private static var cache: String {
    if let cache = getenv("YCLOUD_CACHE") { return String(cString: cache) }
    return (getenv("HOME").map { String(cString: $0) } ?? "/root") + "/.cache/ycloud"
  }

  func up(hosts: Int, subnet: String) async throws {
    try await command(
      ycloud,
      ["up", "--dir", directory, "--name", bridge, "--hosts", "\(hosts)", "--subnet", subnet, "--host-memory", "128"])
  }

  func down() async throws {
    try await command(ycloud, ["down", "--dir", directory, "--purge"])
  }

  /// Uploads the tiny image as the volume `tiny` in the namespace `default`.
  func importTinyImage() async throws {
    try await bmctl("image", "import", "\(Self.cache)/images/tiny.raw", "--name", "tiny")
  }

  @discardableResult
  func kubectl(_ arguments: String...) async throws -> String {
    try await command("kubectl", ["--kubeconfig", kubeconfig] + arguments)
  }

  @discardableResult
  func bmctl(_ arguments: String...) async throws -> String {
    try await command(bmctl, arguments, environment: ["KUBECONFIG": kubeconfig])
  }

  /// The object as JSON, or nil where there is none.
  func object(_ resource: String, _ name: String) async throws -> JSONValue? {
    let text = try await kubectl("get", resource, name, "--ignore-not-found", "-o", "json")
    // Not a ternary: 'nil' there would be JSON's null, which is something.
    guard !text.isEmpty else { return Optional.none }
    return try JSONValue.parse(text)
  }

  func objects(_ resource: String) async throws -> [JSONValue] {
    try JSONValue.parse(try await kubectl("get", resource, "-A", "-o", "json"))["items"]?.arrayValue ?? []
  }

  /// Applies a manifest given as JSON values.
  func apply(_ manifest: JSONValue) async throws {
    let path = "\(directory)/manifest-\(UInt64.random(in: 0...UInt64.max)).json"
    try writeFile(path, manifest.text)
    defer { unlink(path) }
    try await kubectl("apply", "-f", path)
  }

  private func writeFile(_ path: String, _ text: String) throws {
    let file = try #require(fopen(path, "w"))
    defer { fclose(file) }
    let bytes = Array(text.utf8)
    try #require(fwrite(bytes, 1, bytes.count, file) == bytes.count)
  }

  /// Sends SIGKILL to a process of the cloud, by the name of its pid file.
  func kill(_ process: String) throws {
    let identifier = try #require(pid(process), "no pid file for \(process)")
    Glibc.kill(identifier, SIGKILL)
  }

  func pid(_ process: String) -> pid_t? {
    guard let file = fopen("\(directory)/run/\(process).pid", "r") else { return nil }
    defer { fclose(file) }
    var text = [CChar](repeating: 0, count: 64)
    guard fgets(&text, Int32(text.count), file) != nil else { return nil }
    let value = atoi(text)
    return value > 1 ? value : nil
  }
}

/// Starts a cloud before a suite and removes it after, whatever happened.
struct CloudTrait: SuiteTrait, TestScoping {
  let name: String
  let hosts: Int
  let subnet: String

  func provideScope(
    for test: Test, testCase: Test.Case?, performing function: @Sendable () async throws -> Void
  ) async throws {
    let cloud = try CloudUnderTest(name: name)
    do {
      try await cloud.up(hosts: hosts, subnet: subnet)
      try await cloud.importTinyImage()
      try await CloudUnderTest.$current.withValue(cloud) { try await function() }
    } catch {
      try? await cloud.down()
      throw error
    }
    try await cloud.down()
  }
}

extension Trait where Self == CloudTrait {
  /// One cloud for the suite; `name` is also its bridge's and must differ between suites.
  static func cloud(_ name: String, hosts: Int = 2, subnet: String) -> Self {
    CloudTrait(name: name, hosts: hosts, subnet: subnet)
  }
}
