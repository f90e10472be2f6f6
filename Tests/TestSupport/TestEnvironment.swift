import Glibc

/// The machine lacks something that a test needs; the message says what to do.
public struct TestEnvironmentError: Error, CustomStringConvertible {
  public let description: String

  public init(_ description: String) {
    self.description = description
  }
}

/// What a test may ask of the machine it runs on.
public enum TestEnvironment {
  /// Throws unless the tests run as root.
  public static func requireRoot(for purpose: String) throws {
    guard geteuid() == 0 else {
      throw TestEnvironmentError("\(purpose) needs root; run the tests as root (CI does)")
    }
  }

  /// The absolute path of a program; throws with the remedy when it is missing.
  public static func requireTool(_ name: String) throws -> String {
    let directories = ((getenv("PATH").map { String(cString: $0) } ?? "") + ":/usr/sbin:/sbin").split(separator: ":")
    for directory in directories {
      let path = "\(directory)/\(name)"
      if access(path, X_OK) == 0 { return path }
    }
    throw TestEnvironmentError("'\(name)' is not installed; run scripts/install-dependencies.sh")
  }

  /// The root of the checkout.
  public static let repository: String = {
    // Tests/TestSupport/TestEnvironment.swift
    #filePath.split(separator: "/").dropLast(3).reduce(into: "") { $0 += "/\($1)" }
  }()

  /// The path of a program of this package (`ycloud`, `bmctl`), built beside the tests, or in the folder that
  /// `YCLOUD_PROGRAMS` names.
  public static func builtProduct(_ name: String) throws -> String {
    if let folder = getenv("YCLOUD_PROGRAMS") { return "\(String(cString: folder))/\(name)" }
    var buffer = [CChar](repeating: 0, count: Int(PATH_MAX))
    let count = readlink("/proc/self/exe", &buffer, buffer.count)
    guard count > 0 else { throw TestEnvironmentError("cannot read /proc/self/exe") }
    let directory = String(decoding: buffer[..<count].map { UInt8(bitPattern: $0) }, as: UTF8.self).split(
      separator: "/"
    ).dropLast()
    let path = directory.reduce(into: "") { $0 += "/\($1)" } + "/\(name)"
    guard access(path, X_OK) == 0 else {
      throw TestEnvironmentError("\(path) is missing; build the whole package first (swift build --build-tests)")
    }
    return path
  }

  /// A TCP port on 127.0.0.1 that was free a moment ago.
  public static func freePort() throws -> Int {
    for _ in 0..<100 {
      let port = Int.random(in: 20_000...29_999)
      if try isFree(port) { return port }
    }
    throw TestEnvironmentError("no port between 20000 and 29999 is free on 127.0.0.1")
  }

  private static func isFree(_ port: Int) throws -> Bool {
    let descriptor = socket(AF_INET, Int32(SOCK_STREAM.rawValue) | Int32(SOCK_CLOEXEC.rawValue), 0)
    guard descriptor >= 0 else { throw TestEnvironmentError("cannot open a socket") }
    defer { close(descriptor) }
    var address = sockaddr_in()
    address.sin_family = sa_family_t(AF_INET)
    address.sin_port = UInt16(port).bigEndian
    return withUnsafePointer(to: &address) { pointer in
      pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) {
        bind(descriptor, $0, socklen_t(MemoryLayout<sockaddr_in>.size)) == 0
      }
    }
  }
}

/// A small seeded generator (SplitMix64): the same seed gives the same run, so a failing case can be repeated.
public struct SeededGenerator: RandomNumberGenerator, Sendable {
  private var state: UInt64

  public init(seed: UInt64) {
    state = seed
  }

  public mutating func next() -> UInt64 {
    state &+= 0x9e37_79b9_7f4a_7c15
    var value = state
    value = (value ^ (value >> 30)) &* 0xbf58_476d_1ce4_e5b9
    value = (value ^ (value >> 27)) &* 0x94d0_49bb_1331_11eb
    return value ^ (value >> 31)
  }

  /// `count` random bytes.
  public mutating func bytes(_ count: Int) -> [UInt8] {
    (0..<count).map { _ in UInt8(truncatingIfNeeded: next()) }
  }
}
