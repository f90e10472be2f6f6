import Glibc

/// What the process was given by whoever started it.
enum Machine {
  static func variable(_ name: String) -> String? {
    getenv(name).map { String(cString: $0) }
  }

  static func isExecutable(_ path: String) -> Bool {
    access(path, X_OK) == 0 && !Files.isDirectory(path)
  }

  /// The file of this program, also after it was replaced by a newer one.
  static var ownExecutable: String? { ProcessTable.executable(getpid()) }

  static var isRoot: Bool { geteuid() == 0 }

  /// Where things are cached that take long to make: `YCLOUD_CACHE`, or `ycloud` in the user's cache directory.
  static var cache: String {
    if let cache = variable("YCLOUD_CACHE"), !cache.isEmpty { return cache }
    if let cache = variable("XDG_CACHE_HOME"), !cache.isEmpty { return "\(cache)/ycloud" }
    return "\(variable("HOME") ?? "/root")/.cache/ycloud"
  }
}
