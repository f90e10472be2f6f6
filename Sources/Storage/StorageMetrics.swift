package import Telemetry

/// What the storage controller measures.
package struct StorageMetrics: Sendable {
  private let cloneSeconds: HistogramFamily
  private let snapshotSeconds: HistogramFamily
  private let errors: CounterFamily
  private let uploads: CounterFamily
  private let uploadedBytes: CounterFamily
  private let orphans: CounterFamily
  private let registry: MetricsRegistry

  package init(registry: MetricsRegistry) {
    self.registry = registry
    cloneSeconds = registry.histogram(
      "ycloud_volume_clone_seconds", help: "Time to clone a volume in the pool",
      buckets: [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1, 5])
    snapshotSeconds = registry.histogram(
      "ycloud_volume_snapshot_seconds", help: "Time to take a snapshot in the pool, until it is durable",
      buckets: [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1, 5])
    errors = registry.counter(
      "ycloud_storage_errors_total", help: "Failed operations on volumes, by code", labels: ["code"])
    uploads = registry.counter(
      "ycloud_uploads_total", help: "Uploads that ended, by HTTP status", labels: ["status"])
    uploadedBytes = registry.counter("ycloud_uploaded_bytes_total", help: "Bytes received by uploads")
    orphans = registry.counter("ycloud_orphaned_volumes_removed_total", help: "Volumes removed that belonged to nobody")
  }

  /// Reads the pool whenever the metrics are read.
  package func observe(_ pool: ReflinkPool) {
    let capacity = registry.gauge("ycloud_pool_capacity_bytes", help: "Size of the pool's file system")
    let free = registry.gauge("ycloud_pool_free_bytes", help: "Free bytes in the pool's file system")
    let provisioned = registry.gauge(
      "ycloud_pool_provisioned_bytes", help: "Sum of the sizes of all volumes and snapshots")
    let volumes = registry.gauge("ycloud_volumes", help: "Number of volumes in the pool")
    let snapshots = registry.gauge("ycloud_snapshots", help: "Number of snapshots in the pool")
    registry.onRender {
      guard let now = try? pool.usage() else { return }
      capacity.set(Double(now.capacity.totalBytes))
      free.set(Double(now.capacity.freeBytes))
      provisioned.set(Double(now.capacity.provisionedBytes))
      volumes.set(Double(now.volumes))
      snapshots.set(Double(pool.snapshotCount))
    }
  }

  func cloned(_ duration: Duration) { cloneSeconds.observe(duration / .seconds(1)) }
  func tookSnapshot(_ duration: Duration) { snapshotSeconds.observe(duration / .seconds(1)) }
  func failed(_ error: StorageError) { errors.increment(error.code.rawValue) }
  func uploadEnded(status: Int, bytes: Int64) {
    uploads.increment("\(status)")
    uploadedBytes.increment(by: Double(bytes))
  }
  func removedOrphans(_ count: Int) { orphans.increment(by: Double(count)) }
}
