import Logging
import Synchronization
import Telemetry
import Testing

@Suite struct MetricsTests {
  @Test func rendersPrometheusText() {
    let registry = MetricsRegistry()
    let requests = registry.counter("requests_total", help: "All\nrequests.", labels: ["verb", "path"])
    requests.increment("get", "a\"b\\c\nd")
    requests.increment(by: 2.5, "get", "a\"b\\c\nd")
    requests.increment(by: -1, "get", "never")
    registry.gauge("depth", help: "Depth.").set(-3)
    let latency = registry.histogram("latency_seconds", help: "Latency.", buckets: [1, 0.1])
    latency.observe(0.05)
    latency.observe(0.5)
    latency.observe(Duration.seconds(5))
    #expect(
      registry.render() == """
        # HELP depth Depth.
        # TYPE depth gauge
        depth -3
        # HELP latency_seconds Latency.
        # TYPE latency_seconds histogram
        latency_seconds_bucket{le="0.1"} 1
        latency_seconds_bucket{le="1"} 2
        latency_seconds_bucket{le="+Inf"} 3
        latency_seconds_sum 5.55
        latency_seconds_count 3
        # HELP requests_total All\\nrequests.
        # TYPE requests_total counter
        requests_total{verb="get",path="a\\"b\\\\c\\nd"} 3.5

        """)
  }

  @Test func theSameNameIsTheSameFamily() {
    let registry = MetricsRegistry()
    registry.counter("c_total", help: "").increment()
    registry.counter("c_total", help: "").increment()
    #expect(registry.counter("c_total", help: "").value() == 2)
  }

  @Test func seriesAreBounded() {
    let registry = MetricsRegistry(maximumSeries: 3)
    let family = registry.counter("c_total", help: "", labels: ["l"])
    for index in 0..<10 { family.increment("\(index)") }
    #expect(registry.render().contains("metrics_series_dropped_total 7"))
  }

  @Test func valuesAreReadWhenRendering() {
    let registry = MetricsRegistry()
    let gauge = registry.gauge("g", help: "")
    registry.onRender { gauge.set(7) }
    #expect(registry.render().contains("\ng 7\n"))
  }
}

@Suite struct ProcessMetricsTests {
  @Test func tellsMemoryTimeAndFiles() throws {
    let registry = MetricsRegistry()
    registry.addProcessMetrics()
    _ = registry.render()
    #expect(registry.gauge("process_resident_memory_bytes", help: "").value() > 1_000_000)
    #expect(registry.gauge("process_cpu_seconds_total", help: "").value() > 0)
    #expect(registry.gauge("process_open_fds", help: "").value() >= 3)
    #expect(registry.gauge("process_start_time_seconds", help: "").value() > 1_600_000_000)
  }
}

@Suite struct LogTests {
  @Test func anEventIsOneLineWhateverItHolds() {
    let lines = Mutex<[String]>([])
    let logger = Logger(label: "part") { label in
      LineLogHandler(label: label, level: .info) { line in lines.withLock { $0.append(line) } }
    }
    logger.info("two\nlines \"quoted\"", metadata: ["key with=space": "v\u{1B}", "plain": "1.5s"])
    logger.debug("not shown")
    let line = lines.withLock { $0 }
    #expect(line.count == 1)
    #expect(line[0].filter { $0 == "\n" }.count == 1)
    #expect(line[0].hasSuffix(#"msg="two\nlines \"quoted\"" key_with_space="v\x1b" plain=1.5s"# + "\n"))
    #expect(line[0].contains("level=info logger=part "))
  }
}
