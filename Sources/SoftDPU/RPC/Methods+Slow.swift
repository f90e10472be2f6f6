import CLinux
import Glibc
import JSON
import JSONRPC

// The trace of slow requests: methods of this data plane's own, beside SPDK's.
extension Methods {
  static let slow: [String: Method] = [
    "bdev_set_slow_io": { try $0.setSlow($1, $2) },
    "bdev_get_slow_io": { try $0.getSlow($1, $2) },
  ]

  private func setSlow(_ request: Request, _ reply: Reply) throws {
    let microseconds = try Parameters(request, allowed: ["threshold_us"]).uint64("threshold_us")
    guard inventory.setSlowThreshold(microseconds: microseconds) else { throw Methods.systemError(EINVAL) }
    reply(.success(true))
  }

  private func getSlow(_ request: Request, _ reply: Reply) throws {
    let parameters = try Parameters(request, allowed: ["max", "clear"])
    let most = try parameters.optionalUInt32("max") ?? UInt32.max
    let isClearing = try parameters.bool("clear")
    var requests: [SlowRequest] = []
    var total: UInt64 = 0
    for reactor in inventory.reactors {
      let (latest, count) = reactor.sync {
        let core = unsafe reactor.core
        defer { if isClearing { unsafe core.pointee.slow.clear() } }
        return (unsafe core.pointee.slow.latest, unsafe core.pointee.slow.count)
      }
      requests += latest
      total &+= count
    }
    requests.sort { $0.ended > $1.ended }
    for index in requests.indices { requests[index].alias = inventory.device(requests[index].device)?.aliases.first }
    reply(
      .success([
        "tick_rate": 1_000_000_000, "ticks": .integer(Int64(clamping: clinux_monotonic_nanoseconds())),
        "threshold_us": .integer(Int64(clamping: inventory.slowThreshold)),
        "total": .integer(Int64(clamping: total)),
        "requests": .array(requests.prefix(Int(most)).map(\.json)),
      ]))
  }
}
