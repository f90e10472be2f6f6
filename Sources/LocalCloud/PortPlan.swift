/// Which TCP port on 127.0.0.1 each part of a cloud listens on.
package enum PortPlan {
  package static let etcdClient = "etcd-client"
  package static let etcdPeer = "etcd-peer"
  package static let etcdMetrics = "etcd-metrics"
  package static let apiServer = "kube-apiserver"
  package static let controllerManager = "kube-controller-manager"
  package static let upload = "upload"
  package static let machineAPI = "bm-api"

  package static func bmc(_ host: String) -> String { "bmc-\(host)" }
  package static func metrics(_ process: String) -> String { "metrics-\(process)" }

  /// All uses of a port, in the order in which they are given out.
  package static func uses(hosts: [String]) -> [String] {
    [etcdClient, etcdPeer, etcdMetrics, apiServer, controllerManager, upload, machineAPI]
      + ["csi-controller", "bm-controller", "bm-api"].map(metrics)
      + hosts.flatMap { [bmc($0), metrics("softhost-\($0)"), metrics("bm-handler-\($0)")] }
  }

  /// The process that listens on the port of this use.
  package static func owner(of use: String) -> String {
    if use.hasPrefix("etcd-") { return "etcd" }
    if use == upload { return "csi-controller" }
    if use.hasPrefix("bmc-") { return "softhost-" + use.dropFirst(4) }
    if use.hasPrefix("metrics-") { return String(use.dropFirst(8)) }
    return use
  }

  /// Where a cloud begins to look for free ports: derived from its directory, so that two clouds that start at the same
  /// moment hardly meet, and below 32768, where the kernel's own choices for outgoing connections begin.
  package static func defaultBase(directory: String) -> Int {
    16_400 + Int(fnv1a(directory) % 80) * 200
  }

  /// Keeps the ports that were chosen before and adds the missing ones from `base` upwards.
  /// - Throws: ``LocalCloudError`` when no port is left below 65536.
  package static func choose(
    uses: [String], remembered: [String: Int], base: Int, isFree: (Int) -> Bool
  ) throws -> [String: Int] {
    var ports = remembered.filter { uses.contains($0.key) }
    var taken = Set(ports.values)
    var next = base
    for use in uses where ports[use] == nil {
      while next <= 65_535, taken.contains(next) || !isFree(next) { next += 1 }
      guard next <= 65_535 else {
        throw LocalCloudError(
          .conflict, operation: "choose a port for \(use)", "no port from \(base) upwards is free; give a --port-base")
      }
      ports[use] = next
      taken.insert(next)
      next += 1
    }
    return ports
  }
}
