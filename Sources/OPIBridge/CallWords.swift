import DPU
import GRPCCore

/// What a call says beyond OPI's messages, in its metadata.
enum CallWords {
  /// Whether a disk is taken from its server without the server's consent.
  @TaskLocal static var isForced = false
}

/// Makes the words of a call known to what is done for it.
struct CallWordsReader: ServerInterceptor {
  func intercept<Input: Sendable, Output: Sendable>(
    request: StreamingServerRequest<Input>, context: ServerContext,
    next: @Sendable (StreamingServerRequest<Input>, ServerContext) async throws -> StreamingServerResponse<Output>
  ) async throws -> StreamingServerResponse<Output> {
    let isForced = request.metadata[stringValues: OPIClient.forceKey].contains { $0 == "true" }
    guard isForced else { return try await next(request, context) }
    return try await CallWords.$isForced.withValue(true) { try await next(request, context) }
  }
}
