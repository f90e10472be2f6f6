/// The accounts of a BMC, read from a file with lines `user:password` each time they are needed, so that a changed
/// file counts at once; or one account that never changes.
package struct Accounts: Sendable {
  private let path: String
  private let fixed: [(user: String, secret: String)]?

  package init(path: String) {
    self.path = path
    fixed = nil
  }

  /// One account, in memory only.
  package init(username: String, password: String) {
    path = ""
    fixed = [(username, password)]
  }

  /// Throws where the file has no account, so that this is said at the start and not at the first sign-in.
  func check() throws {
    let text = try TextFile.read(path, limit: 64 << 10)
    guard text.split(whereSeparator: \.isNewline).contains(where: { !$0.hasPrefix("#") && $0.contains(":") }) else {
      throw SoftHostError(
        .configuration, operation: "read the BMC's accounts", message: "\(path) has no line user:password")
    }
  }

  /// The account with that name and password, or nil. Takes the same time wherever the two differ.
  package func account(username: String, password: String) throws -> AccountDigest? {
    var found: AccountDigest?
    for (user, secret) in try lines() {
      let isUser = Accounts.equal(user, username)
      let isSecret = Accounts.equal(secret, password)
      if isUser && isSecret { found = AccountDigest(username: user, password: secret) }
    }
    return found
  }

  /// Whether the file still has the account, with the password that it had.
  package func has(_ account: AccountDigest) throws -> Bool {
    try lines().contains { AccountDigest(username: $0, password: $1) == account }
  }

  private func lines() throws -> [(user: String, secret: String)] {
    if let fixed { return fixed }
    let text = try TextFile.read(path, limit: 64 << 10)
    return text.split(whereSeparator: \.isNewline).compactMap { line in
      guard !line.hasPrefix("#"), let colon = line.firstIndex(of: ":") else { return nil }
      return (String(line[..<colon]), String(line[line.index(after: colon)...]))
    }
  }

  /// Compares without stopping at the first difference.
  package static func equal(_ left: String, _ right: String) -> Bool {
    let left = Array(left.utf8)
    let right = Array(right.utf8)
    var difference = left.count ^ right.count
    for index in 0..<max(left.count, right.count, 1) {
      let one = index < left.count ? left[index] : 0
      let other = index < right.count ? right[index] : 0
      difference |= Int(one ^ other)
    }
    return difference == 0
  }
}

/// Tells whether an account is still the one it was, without keeping its password.
///
/// It is keyed by this process (`Hasher`) and means nothing outside of it. It serves to notice changes that the owner of
/// the file makes, not to withstand somebody who looks for a second password with the same digest.
package struct AccountDigest: Sendable, Hashable {
  private let value: Int

  package init(username: String, password: String) {
    var hasher = Hasher()
    hasher.combine(username)
    hasher.combine(password)
    value = hasher.finalize()
  }
}

/// Locks an account for a while after failures in a row. Pure.
package struct Lockout: Sendable {
  /// Failures that lock.
  package static let threshold = 5
  package static let duration = Duration.seconds(30)
  /// Accounts that are watched at a time; names come from strangers.
  private static let accountsMax = 256

  private struct Entry {
    var failures = 0
    var last: ContinuousClock.Instant
    var lockedUntil: ContinuousClock.Instant?
  }

  private var entries: [String: Entry] = [:]

  package init() {}

  package func isLocked(_ user: String, now: ContinuousClock.Instant) -> Bool {
    entries[user]?.lockedUntil.map { $0 > now } ?? false
  }

  package mutating func failed(_ user: String, now: ContinuousClock.Instant) {
    entries = entries.filter { now < $0.value.last + Lockout.duration }
    if entries.count >= Lockout.accountsMax, entries[user] == nil,
      let oldest = entries.min(by: { $0.value.last < $1.value.last })
    {
      entries[oldest.key] = nil
    }
    var entry = entries[user] ?? Entry(last: now)
    entry.failures += 1
    entry.last = now
    if entry.failures >= Lockout.threshold { entry.lockedUntil = now + Lockout.duration }
    entries[user] = entry
  }

  package mutating func succeeded(_ user: String) { entries[user] = nil }
}

/// The sessions of a BMC: few, and each ends when it is not used for a while. Pure but for the randomness of tokens.
package struct Sessions: Sendable {
  package struct Session: Sendable, Hashable {
    package let id: String
    package let user: String
    package let token: String
    /// The account that signed in: when that changes, the session is over.
    package let account: AccountDigest
    package var lastUse: ContinuousClock.Instant
  }

  package static let sessionsMax = 16
  package let timeout: Duration
  private var sessions: [Session] = []
  private var count = 0

  package init(timeout: Duration) {
    self.timeout = timeout
  }

  package var all: [Session] { sessions }

  /// A new session, or nil where there is no room.
  package mutating func make(user: String, account: AccountDigest, now: ContinuousClock.Instant) -> Session? {
    expire(now)
    guard sessions.count < Sessions.sessionsMax else { return nil }
    count += 1
    var random = SystemRandomNumberGenerator()
    let token = Hexadecimal.text((0..<32).map { _ in UInt8.random(in: .min ... .max, using: &random) })
    let session = Session(id: String(count), user: user, token: token, account: account, lastUse: now)
    sessions.append(session)
    return session
  }

  /// The session of a token, which counts as used now.
  package mutating func use(_ token: String, now: ContinuousClock.Instant) -> Session? {
    expire(now)
    guard let index = sessions.firstIndex(where: { Accounts.equal($0.token, token) }) else { return nil }
    sessions[index].lastUse = now
    return sessions[index]
  }

  package mutating func remove(_ id: String) -> Bool {
    guard let index = sessions.firstIndex(where: { $0.id == id }) else { return false }
    sessions.remove(at: index)
    return true
  }

  package mutating func expire(_ now: ContinuousClock.Instant) {
    sessions.removeAll { $0.lastUse + timeout <= now }
  }
}
