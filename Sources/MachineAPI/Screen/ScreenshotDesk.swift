package import BMC
package import IaaS
import Synchronization

/// How many pictures may be on their way at a time, from the request to the last byte of the answer. Each is up to 8 MiB,
/// and some times that while it is unpacked.
package struct ScreenshotLimits: Sendable, Hashable {
  package var total = 8
  /// Of them for one user.
  package var perUser = 2

  package init() {}
}

/// A place among the pictures that are on their way, given back with the last reference to it.
package final class ScreenshotPermit: Sendable {
  private let giveBack: @Sendable () -> Void

  fileprivate init(giveBack: @escaping @Sendable () -> Void) { self.giveBack = giveBack }

  deinit { giveBack() }
}

/// Takes pictures of screens, a few at a time and of each host one.
///
/// Whoever leaves before the picture is there does not end the taking: a BMC would be left with a session that nobody
/// knows. It is bounded in time, and its place is taken until it is over.
package final class ScreenshotDesk: Sendable {
  private struct Job {
    let host: BareMetalHost
    let done: CheckedContinuation<ScreenPicture, any Error>
  }

  private struct State {
    var users: [String: Int] = [:]
    var hosts: Set<String> = []
    var waiting: [Job] = []
    var isOpen = true
  }

  private let camera: ScreenCamera
  private let limits: ScreenshotLimits
  private let state = Mutex(State())
  private let (bell, ring) = AsyncStream.makeStream(of: Void.self, bufferingPolicy: .bufferingNewest(1))

  package init(camera: ScreenCamera, limits: ScreenshotLimits) {
    self.camera = camera
    self.limits = limits
  }

  /// Takes the pictures that are asked for until cancelled.
  package func run() async {
    await withDiscardingTaskGroup { group in
      for await _ in bell {
        let jobs = state.withLock { state in
          defer { state.waiting = [] }
          return state.waiting
        }
        // No more than there are places.
        for job in jobs {
          group.addTask { [camera] in
            let outcome: Result<ScreenPicture, any Error>
            do { outcome = .success(try await camera.take(job.host)) } catch { outcome = .failure(error) }
            job.done.resume(with: outcome)
          }
        }
      }
    }
    let left = state.withLock { state in
      state.isOpen = false
      defer { state.waiting = [] }
      return state.waiting
    }
    for job in left { job.done.resume(throwing: CancellationError()) }
  }

  /// Takes a place, or says why there is none.
  package func enter(user: String, host: String, machine: String) throws(APIFailure) -> ScreenshotPermit {
    let limits = limits
    let refusal = state.withLock { state -> String? in
      if state.hosts.contains(host) { return "another picture of the screen of machine \(machine) is being taken" }
      if state.users[user, default: 0] >= limits.perUser {
        return "\(limits.perUser) pictures are being taken for you already, which is the most"
      }
      if state.users.values.reduce(0, +) >= limits.total {
        return "\(limits.total) pictures are being taken already, which is the most"
      }
      state.users[user, default: 0] += 1
      state.hosts.insert(host)
      return nil
    }
    if let refusal {
      throw APIFailure(429, "TooManyRequests", "\(refusal); try again", machine: machine, retryAfterSeconds: 1)
    }
    return ScreenshotPermit { [self] in
      state.withLock { state in
        let left = (state.users[user] ?? 1) - 1
        state.users[user] = left > 0 ? left : nil
        state.hosts.remove(host)
      }
    }
  }

  /// A picture of a host's screen. To be called by who has a place.
  package func picture(of host: BareMetalHost) async throws -> ScreenPicture {
    try await withCheckedThrowingContinuation { continuation in
      let isTaken = state.withLock { state in
        if state.isOpen { state.waiting.append(Job(host: host, done: continuation)) }
        return state.isOpen
      }
      if isTaken { ring.yield() } else { continuation.resume(throwing: CancellationError()) }
    }
  }
}
