#if canImport(Glibc)
  import Glibc
#elseif canImport(Musl)
  import Musl
#endif

/// How many files this process may have open.
package enum FileLimit {
  /// More are of no use here; and QEMU inherits the limit, and programs that close everything up to theirs take long
  /// where that is a billion.
  package static let most = 65_536

  /// Raises the soft limit to the hard one, or to `most`: shells and service managers give 1024 to programs that might
  /// use `select`, and the console's readers alone can use that up. Best effort.
  package static func raise() {
    var limit = rlimit()
    guard getrlimit(__rlimit_resource_t(RLIMIT_NOFILE.rawValue), &limit) == 0 else { return }
    let wanted = min(limit.rlim_max, rlim_t(most))
    guard limit.rlim_cur < wanted else { return }
    limit.rlim_cur = wanted
    setrlimit(__rlimit_resource_t(RLIMIT_NOFILE.rawValue), &limit)
  }
}
