import AsyncHTTPClient
import JSON
import NIOCore
import NIOHTTP1
import NIOSSL
import Synchronization

/// Where csi-controller takes content, as the ConfigMap `ycloud-system/upload` says.
struct UploadEndpoint: Sendable {
  let url: String
  let certificateAuthority: String
  /// Whether files may be sent without their holes.
  var takesExtents = false

  /// Sends `bytes` bytes of the file at `path` into a claim.
  ///
  /// - Parameter progress: Called with the number of bytes sent so far.
  func send(
    file path: String, bytes: Int64, namespace: String, claim: String, token: String,
    progress: @escaping @Sendable (Int64) -> Void
  ) async throws {
    let operation = "upload to \(url)"
    var tls = TLSConfiguration.makeClientConfiguration()
    tls.minimumTLSVersion = .tlsv12
    do {
      tls.trustRoots = .certificates(try NIOSSLCertificate.fromPEMBytes(Array(certificateAuthority.utf8)))
    } catch {
      throw CommandError(
        .unreachable, operation, "ca.crt in the ConfigMap ycloud-system/upload is no certificate", cause: error)
    }
    var configuration = HTTPClient.Configuration(
      tlsConfiguration: tls, redirectConfiguration: .disallow, timeout: .init(connect: .seconds(10)))
    configuration.httpVersion = .http1Only
    let client = HTTPClient(eventLoopGroupProvider: .singleton, configuration: configuration)
    do {
      let layout = UploadLayout(size: bytes, data: takesExtents ? try RawFile(path).dataExtents() : nil)
      try await put(client, path, layout, "\(url)/v1/upload/\(namespace)/\(claim)", token, operation, progress)
      try await client.shutdown()
    } catch {
      try? await client.shutdown()
      throw error
    }
  }

  private func put(
    _ client: HTTPClient, _ path: String, _ layout: UploadLayout, _ target: String, _ token: String,
    _ operation: String,
    _ progress: @escaping @Sendable (Int64) -> Void
  ) async throws {
    var request = HTTPClientRequest(url: target)
    request.method = .PUT
    request.headers.add(name: "Authorization", value: "Bearer \(token)")
    request.headers.add(name: "Content-Type", value: layout.contentType)
    let fault = Fault()
    request.body = .stream(
      FileChunks(path: path, layout: layout, progress: progress, fault: fault), length: .known(layout.bodyBytes))
    let status: UInt
    let text: String
    do {
      let response = try await client.execute(request, deadline: .now() + .hours(12))
      status = response.status.code
      text = String(buffer: try await response.body.collect(upTo: 64 << 10))
    } catch {
      // The HTTP client would only say that the body could not be read.
      if let fault = fault.error { throw fault }
      if error is CancellationError { throw error }
      throw CommandError(
        .unreachable, operation, "\(error)", remedy: "Is csi-controller running, and can this computer reach it?",
        cause: error)
    }
    guard status == 200 else {
      let message = (try? JSONValue.parse(text))?["message"]?.stringValue ?? "HTTP status \(status)"
      let code: ExitReason =
        switch status {
        case 401, 403: .refused
        case 409: .conflict
        case 413, 422: .invalidInput
        default: .failure
        }
      throw CommandError(code, operation, TextWidth.printable(message))
    }
  }
}

/// Why reading the file failed.
private final class Fault: Sendable {
  private let state = Mutex<CommandError?>(nil)

  var error: CommandError? {
    get { state.withLock { $0 } }
    set { state.withLock { $0 = newValue } }
  }
}

/// The content of a file in pieces, read when they are asked for.
private struct FileChunks: AsyncSequence, Sendable {
  typealias Element = ByteBuffer
  static let chunkBytes: Int64 = 1 << 20

  let path: String
  let layout: UploadLayout
  let progress: @Sendable (Int64) -> Void
  let fault: Fault

  func makeAsyncIterator() -> Iterator { Iterator(chunks: self) }

  struct Iterator: AsyncIteratorProtocol {
    let chunks: FileChunks
    private var pieces: UploadLayout.Pieces
    private var file: FileBox?

    init(chunks: FileChunks) {
      self.chunks = chunks
      pieces = chunks.layout.pieces(chunkBytes: FileChunks.chunkBytes)
    }

    mutating func next() async throws -> ByteBuffer? {
      guard let piece = pieces.next() else { return nil }
      do {
        let box = try file ?? FileBox(chunks.path)
        file = box
        let bytes = try box.file.read(at: piece.offset, count: Int(piece.length))
        guard bytes.count == Int(piece.length) else {
          throw CommandError(.invalidInput, "read \(chunks.path)", "the file became shorter while it was read")
        }
        chunks.progress(piece.offset + piece.length)
        var buffer = ByteBuffer(bytes: piece.head)
        buffer.writeBytes(bytes)
        return buffer
      } catch let error as CommandError {
        chunks.fault.error = error
        throw error
      }
    }
  }

  private final class FileBox {
    let file: RawFile
    init(_ path: String) throws { file = try RawFile(path) }
  }
}
