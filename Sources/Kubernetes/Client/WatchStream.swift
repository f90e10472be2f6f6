import AsyncHTTPClient
import NIOCore

/// A change of a watched collection.
public enum WatchEvent<T: Sendable>: Sendable {
  case added(T)
  case modified(T)
  /// The object as it was last.
  case deleted(T)
  /// Nothing changed, but everything up to this version was seen.
  case bookmark(resourceVersion: String)
  /// The watch is over for a reason that the server gives; with the code `gone`, list again.
  case error(KubernetesError)
}

struct WatchOptions: Sendable {
  var namespace: String?
  var labelSelector: String?
  var fieldSelector: String?
  var resourceVersion: String
  var allowBookmarks: Bool
  var timeout: Duration
}

/// The events of one watch request, read as fast as they are consumed.
public struct WatchStream<T: Sendable>: AsyncSequence, Sendable {
  public typealias Element = WatchEvent<T>

  private let makeSource: @Sendable () -> any WatchSource<T>

  init<Wire: Decodable & Sendable>(
    client: KubernetesClient, definition: ResourceDefinition, options: WatchOptions,
    finish: @escaping @Sendable (Wire) -> T
  ) {
    makeSource = { HTTPWatchSource(client: client, definition: definition, options: options, finish: finish) }
  }

  public func makeAsyncIterator() -> Iterator { Iterator(source: makeSource()) }

  public struct Iterator: AsyncIteratorProtocol {
    private let source: any WatchSource<T>

    fileprivate init(source: any WatchSource<T>) { self.source = source }

    /// The next event; nil after the server ended the watch.
    /// - Throws: `KubernetesError` where the request is refused (`gone` too) or the connection is lost.
    public mutating func next() async throws -> WatchEvent<T>? { try await source.next() }
  }
}

private protocol WatchSource<T>: AnyObject {
  associatedtype T: Sendable
  func next() async throws -> WatchEvent<T>?
}

/// One watch over HTTP. Used by one task at a time, as iterators are.
private final class HTTPWatchSource<Wire: Decodable & Sendable, T: Sendable>: WatchSource {
  private let client: KubernetesClient
  private let definition: ResourceDefinition
  private let options: WatchOptions
  private let finish: @Sendable (Wire) -> T
  private var decoder: WatchDecoder<Wire>
  private var body: HTTPClientResponse.Body.AsyncIterator?
  private var isOver = false

  init(
    client: KubernetesClient, definition: ResourceDefinition, options: WatchOptions,
    finish: @escaping @Sendable (Wire) -> T
  ) {
    self.client = client
    self.definition = definition
    self.options = options
    self.finish = finish
    decoder = WatchDecoder(maximumEventBytes: client.configuration.maximumEventBytes)
  }

  func next() async throws -> WatchEvent<T>? {
    guard !isOver else { return nil }
    do {
      let event = try await advance()
      if event == nil { end() }
      return event
    } catch {
      end()
      throw client.translate(error, operation: "watch \(definition.plural)")
    }
  }

  /// Gives the connection up at once, also where the server would send more.
  private func end() {
    isOver = true
    body = nil
  }

  private func advance() async throws -> WatchEvent<T>? {
    if body == nil {
      let seconds = Int(min(max(options.timeout.inSeconds, 1), 86_400))
      let call = KubernetesClient.Call.watch(definition, options, timeoutSeconds: seconds)
      let credential = try await client.prepare(call)
      // For the head of the answer; a body that falls silent is given up by the transport.
      let deadline = NIODeadline.now() + .nanoseconds(client.configuration.requestTimeout.inNanoseconds)
      body = try await client.open(call, as: credential, deadline: deadline).body.makeAsyncIterator()
    }
    while true {
      if let event = try decoder.next() { return deliver(event) }
      guard let chunk = try await body?.next() else {
        try Task.checkCancellation()
        guard !decoder.hasPartialEvent else {
          throw KubernetesError(
            code: .unavailable, operation: "watch \(definition.plural)",
            message: "the connection was cut in the middle of an event")
        }
        return nil
      }
      decoder.append(chunk.readableBytesView)
    }
  }

  private func deliver(_ event: RawWatchEvent<Wire>) -> WatchEvent<T>? {
    switch event {
    case .change(.added, let object): return .added(finish(object))
    case .change(.modified, let object): return .modified(finish(object))
    case .change(.deleted, let object): return .deleted(finish(object))
    case .bookmark(let version): return .bookmark(resourceVersion: version)
    case .error(let status):
      end()
      return .error(KubernetesError(operation: "watch \(definition.plural)", watchError: status))
    case .unknown: return nil
    }
  }
}
