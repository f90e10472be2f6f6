public import ArgumentParser
import Dispatch
import Kubernetes
public import Logging

#if canImport(Glibc)
  import Glibc
#elseif canImport(Musl)
  import Musl
#endif

/// Runs a role until it ends or the process gets SIGTERM or SIGINT, which cancels it: a graceful stop, no error.
func untilTerminated(_ body: @escaping @Sendable () async throws -> Void) async throws {
  let (signals, continuation) = AsyncStream.makeStream(of: Void.self, bufferingPolicy: .bufferingNewest(1))
  let sources = [SIGTERM, SIGINT].map { number in
    // The default action would end the process before the source sees the signal.
    signal(number, SIG_IGN)
    let source = DispatchSource.makeSignalSource(signal: number, queue: .global())
    source.setEventHandler { continuation.yield() }
    source.resume()
    return source
  }
  // Peers that close their end are told by an error of the write.
  signal(SIGPIPE, SIG_IGN)
  defer { for source in sources { source.cancel() } }
  try await withThrowingTaskGroup(of: Bool.self) { group in
    group.addTask {
      try await body()
      return true
    }
    group.addTask {
      for await _ in signals { break }
      return false
    }
    defer { group.cancelAll() }
    if try await group.next() == false {
      group.cancelAll()
      do {
        while try await group.next() != nil {}
      } catch is CancellationError {
        // What the role ends with when it is told to stop.
      }
    }
  }
}

/// A `HOST:PORT` given as a flag; an IPv6 host stands in brackets.
struct HostAndPort: Sendable, Hashable {
  let host: String
  let port: Int

  init(_ text: String, flag: String) throws {
    guard let colon = text.lastIndex(of: ":"), let port = Int(text[text.index(after: colon)...]),
      (0...65535).contains(port)
    else { throw ValidationError("\(flag) must be HOST:PORT, such as 127.0.0.1:8443.") }
    var host = text[..<colon]
    if host.hasPrefix("["), host.hasSuffix("]") { host = host.dropFirst().dropLast() }
    guard !host.isEmpty else { throw ValidationError("\(flag) has no host.") }
    self.host = String(host)
    self.port = port
  }
}

/// How fast a controller may ask the API server.
///
/// An API server protects itself from its clients (priority and fairness, on by default since 1.20); the limit here is
/// against a controller that runs wild, and lets a thousand machines start at the API server's own pace.
struct RequestRate: ParsableArguments {
  @Option(help: "Requests to the API server a second, at most (1 to 100000).") var kubeQps = 2000.0
  @Option(help: "Requests to the API server at once after a pause, at most (1 to 100000).") var kubeBurst = 4000

  func validate() throws {
    guard (1...100_000).contains(kubeQps) else { throw ValidationError("--kube-qps must be 1 to 100000.") }
    guard (1...100_000).contains(kubeBurst) else { throw ValidationError("--kube-burst must be 1 to 100000.") }
  }

  /// - Parameter role: The name by which the API server's audit log knows the client.
  func applied(to configuration: ClientConfiguration, role: String) -> ClientConfiguration {
    var configuration = configuration
    configuration.userAgent = role
    configuration.queriesPerSecond = kubeQps
    configuration.burst = kubeBurst
    return configuration
  }
}

extension Logger.Level: @retroactive ExpressibleByArgument {}
