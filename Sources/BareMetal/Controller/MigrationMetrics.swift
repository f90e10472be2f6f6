package import IaaS
package import Telemetry

/// What bm-controller counts about migrations.
package final class MigrationMetrics: Sendable {
  private let finished: CounterFamily
  private let durations: HistogramFamily

  package init(registry: MetricsRegistry) {
    finished = registry.counter(
      "ycloud_migrations_total", help: "Migrations that ended, by how they ended.", labels: ["result"])
    durations = registry.histogram(
      "ycloud_migration_seconds",
      help:
        "Seconds from the source seen off to its proof (fence), from there to the target on (own), and both (down).",
      labels: ["part"], buckets: [0.25, 0.5, 1, 2, 3, 5, 7, 10, 15, 20, 30, 60, 120, 300])
  }

  package func observe(
    from old: BareMetalMachineMigration.Status?, to new: BareMetalMachineMigration.Status
  ) {
    guard let phase = new.phase, phase != old?.phase, phase == .succeeded || phase == .failed else { return }
    finished.increment(by: 1, phase == .succeeded ? "succeeded" : "failed")
    guard phase == .succeeded, let timeline = new.timeline else { return }
    for (name, seconds) in [
      ("fence", timeline.fenceSeconds), ("own", timeline.ownSeconds), ("down", timeline.downSeconds),
    ] {
      if let seconds { durations.observe(seconds, name) }
    }
  }
}
