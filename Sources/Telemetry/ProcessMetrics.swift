#if canImport(Glibc)
  import Glibc
#elseif canImport(Musl)
  import Musl
#endif

extension MetricsRegistry {
  /// Adds what Prometheus clients commonly tell about their process: memory, processor time, open files, start time.
  public func addProcessMetrics() {
    #if os(Linux)
      let memory = gauge("process_resident_memory_bytes", help: "Resident memory.")
      let processor = gauge("process_cpu_seconds_total", help: "Processor time in user and system mode.")
      let files = gauge("process_open_fds", help: "Open file descriptors.")
      let start = gauge("process_start_time_seconds", help: "When the process started, in seconds since 1970.")
      let (now, _) = CivilTime.now()
      start.set(Double(now) - (ProcessStatus.secondsSinceStart() ?? 0))
      onRender {
        if let pages = ProcessStatus.residentPages() {
          memory.set(Double(pages) * Double(sysconf(Int32(_SC_PAGESIZE))))
        }
        var usage = rusage()
        #if canImport(Glibc)
          let failed = getrusage(__rusage_who_t(RUSAGE_SELF.rawValue), &usage) != 0
        #else
          let failed = getrusage(RUSAGE_SELF, &usage) != 0
        #endif
        if !failed {
          let seconds = usage.ru_utime.tv_sec + usage.ru_stime.tv_sec
          let microseconds = usage.ru_utime.tv_usec + usage.ru_stime.tv_usec
          processor.set(Double(seconds) + Double(microseconds) / 1_000_000)
        }
        if let count = ProcessStatus.openFiles() { files.set(Double(count)) }
      }
    #endif
  }
}

#if os(Linux)
  /// What /proc tells about this process.
  private enum ProcessStatus {
    static func residentPages() -> Int? {
      read("/proc/self/statm").flatMap { text in
        let fields = text.split(separator: " ")
        return fields.count > 1 ? Int(fields[1]) : nil
      }
    }

    static func secondsSinceStart() -> Double? {
      // The second field is the program's name in parentheses and may contain anything; count from behind it.
      guard let status = read("/proc/self/stat"), let end = status.lastIndex(of: ")"),
        let uptime = read("/proc/uptime")?.split(separator: " ").first.flatMap({ Double($0) })
      else { return nil }
      let fields = status[end...].split(separator: " ")
      guard fields.count > 20, let ticks = Double(fields[20]) else { return nil }
      return uptime - ticks / Double(sysconf(Int32(_SC_CLK_TCK)))
    }

    static func openFiles() -> Int? {
      guard let directory = opendir("/proc/self/fd") else { return nil }
      defer { closedir(directory) }
      var count = 0
      while readdir(directory) != nil { count += 1 }
      // Not counted: `.`, `..` and the descriptor that reads the directory.
      return max(0, count - 3)
    }

    private static func read(_ path: String) -> String? {
      guard let file = fopen(path, "re") else { return nil }
      defer { fclose(file) }
      var buffer = [UInt8](repeating: 0, count: 4096)
      let count = fread(&buffer, 1, buffer.count, file)
      return count > 0 ? String(decoding: buffer[..<count], as: UTF8.self) : nil
    }
  }
#endif
