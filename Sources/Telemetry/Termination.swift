import Dispatch

#if canImport(Glibc)
  import Glibc
#elseif canImport(Musl)
  import Musl
#elseif canImport(Darwin)
  import Darwin
#endif

/// The signals by which a process is asked to end.
public enum Termination {
  /// SIGTERM and SIGINT as they come. From the first call on they do not kill the process any more.
  public static func signals() -> AsyncStream<Int32> {
    let numbers = [SIGTERM, SIGINT]
    #if canImport(Darwin)
      // Dispatch on Linux installs a handler of its own, which programs started from here do not inherit.
      for number in numbers { signal(number, SIG_IGN) }
    #endif
    // A handful: who sends more than that does not add anything.
    let (stream, continuation) = AsyncStream.makeStream(of: Int32.self, bufferingPolicy: .bufferingNewest(4))
    let sources = Sources(
      numbers.map { number in
        let source = DispatchSource.makeSignalSource(signal: number, queue: .global())
        source.setEventHandler { continuation.yield(number) }
        source.resume()
        return source
      })
    continuation.onTermination = { _ in sources.cancel() }
    return stream
  }

  /// Dispatch sources may be cancelled from any thread; their type does not say so.
  private final class Sources: @unchecked Sendable {
    private let sources: [any DispatchSourceSignal]

    init(_ sources: [any DispatchSourceSignal]) { self.sources = sources }

    func cancel() {
      for source in sources { source.cancel() }
    }
  }

  /// Runs `body` and cancels it when the process is asked to end. A cancellation that follows from that is no error.
  public static func runUntilAsked(_ body: @escaping @Sendable () async throws -> Void) async throws {
    let stream = signals()
    try await withThrowingTaskGroup(of: Bool.self) { group in
      group.addTask {
        try await body()
        return false
      }
      group.addTask {
        for await _ in stream { return true }
        return false
      }
      let asked = try await group.next() ?? false
      group.cancelAll()
      while true {
        do {
          guard try await group.next() != nil else { break }
        } catch is CancellationError where asked {
          continue
        }
      }
    }
  }
}
