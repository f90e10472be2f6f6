import Glibc
import Synchronization

/// Shows how far an upload is. Called from wherever the bytes are sent.
final class UploadProgress: Sendable {
  private struct State {
    var line = ProgressLine()
    var shownAt: ContinuousClock.Instant?
  }

  private let total: Int64
  private let name: String
  private let started = ContinuousClock.now
  private let interval: Duration
  private let state = Mutex(State())

  init(name: String, total: Int64) {
    self.name = name
    self.total = total
    interval = isatty(2) == 1 ? .milliseconds(100) : .seconds(5)
  }

  func sent(_ bytes: Int64) {
    let now = ContinuousClock.now
    state.withLock { state in
      if let shown = state.shownAt, bytes < total, shown.duration(to: now) < interval { return }
      state.shownAt = now
      let percent = total > 0 ? Int(Double(bytes) / Double(total) * 100) : 100
      let done = bytes >= total ? "all sent, waiting for csi-controller" : "\(percent) %"
      state.line.show(
        "\(name): \(done), \(DurationText.bytes(bytes)) of \(DurationText.bytes(total)), \(rate(bytes, now))",
        key: "\(bytes)")
    }
  }

  func end() { state.withLock { $0.line.clear() } }

  /// The speed since the start.
  private func rate(_ bytes: Int64, _ now: ContinuousClock.Instant) -> String {
    let seconds = started.duration(to: now).inSeconds
    guard seconds > 0.05 else { return "…" }
    return "\(DurationText.fixed(Double(bytes) / seconds / 1e6, digits: 0)) MB/s"
  }
}

extension Duration {
  var inSeconds: Double { Double(components.seconds) + Double(components.attoseconds) * 1e-18 }
}
