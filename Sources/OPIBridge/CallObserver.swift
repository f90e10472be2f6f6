import GRPCCore
import Logging
import Telemetry

/// Counts and times the calls, and logs those that failed on our side. No message is logged: some have keys in them.
struct CallObserver: ServerInterceptor {
  private let calls: CounterFamily
  private let durations: HistogramFamily
  private let logger: Logger

  init(registry: MetricsRegistry, logger: Logger) {
    calls = registry.counter(
      "opi_bridge_calls_total", help: "Calls, by method and gRPC status code.", labels: ["method", "code"])
    durations = registry.histogram(
      "opi_bridge_call_duration_seconds", help: "Time from a call's arrival to its answer, by method.",
      labels: ["method"])
    self.logger = logger
  }

  func intercept<Input: Sendable, Output: Sendable>(
    request: StreamingServerRequest<Input>, context: ServerContext,
    next: @Sendable (StreamingServerRequest<Input>, ServerContext) async throws -> StreamingServerResponse<Output>
  ) async throws -> StreamingServerResponse<Output> {
    let method = context.descriptor.method
    let begin = ContinuousClock.now
    defer { durations.observe(begin.duration(to: .now), method) }
    do {
      let response = try await next(request, context)
      switch response.accepted {
      case .success: calls.increment(method, "ok")
      case .failure(let error): note(method, error)
      }
      return response
    } catch {
      note(method, error)
      throw error
    }
  }

  private func note(_ method: String, _ error: any Error) {
    let code = (error as? RPCError)?.code ?? .unknown
    calls.increment(method, "\(code)")
    let isOurs = [.internalError, .unknown, .dataLoss].contains(code)
    let text = (error as? RPCError)?.message ?? "\(error)"
    logger.log(
      level: isOurs ? .warning : .debug, "call failed",
      metadata: ["method": "\(method)", "code": "\(code)", "error": "\(text)"])
  }
}
