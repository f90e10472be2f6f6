package import Telemetry

/// What a chassis counts for its operators.
package struct SoftHostMetrics: Sendable {
  let powerOn: GaugeFamily
  let functions: GaugeFamily
  let problems: GaugeFamily
  let resets: CounterFamily
  let powerOnSeconds: HistogramFamily
  let requests: CounterFamily
  let refusals: CounterFamily
  let screenshots: CounterFamily
  let consoleBytes: CounterFamily
  let consoleSkipped: CounterFamily
  let consoleClients: GaugeFamily

  package init(_ registry: MetricsRegistry) {
    powerOn = registry.gauge("softhost_power_on", help: "1 while the server is on.")
    functions = registry.gauge("softhost_functions", help: "PCIe functions that are plugged.")
    problems = registry.gauge("softhost_bus_problems", help: "Things on the bus that cannot be plugged or unplugged.")
    resets = registry.counter("softhost_resets_total", help: "Changes of power asked for.", labels: ["type"])
    powerOnSeconds = registry.histogram(
      "softhost_power_on_seconds", help: "From the wish for power to the guest's first instruction.",
      buckets: [0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10])
    requests = registry.counter(
      "softhost_bmc_requests_total", help: "Requests to the BMC.", labels: ["method", "status"])
    refusals = registry.counter("softhost_bmc_refused_total", help: "Wrong user names or passwords.")
    screenshots = registry.counter(
      "softhost_screenshots_total", help: "Pictures of the screen that were asked for.", labels: ["outcome"])
    consoleBytes = registry.counter("softhost_console_bytes_total", help: "Bytes the guest wrote to its console.")
    consoleSkipped = registry.counter(
      "softhost_console_skipped_bytes_total", help: "Console bytes that slow readers missed.")
    consoleClients = registry.gauge("softhost_console_clients", help: "Connected readers and writers of the console.")
  }
}
