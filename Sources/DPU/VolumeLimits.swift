/// What a volume may do at most, in the units that data planes keep; zero is no limit.
public struct VolumeLimits: Sendable, Hashable {
  /// Requests a second, a multiple of 1000.
  public var iops: Int64
  /// Mebibytes a second in both directions together.
  public var bandwidth: Int64
  /// Mebibytes a second that are read.
  public var readBandwidth: Int64
  /// Mebibytes a second that are written.
  public var writeBandwidth: Int64

  public init(iops: Int64 = 0, bandwidth: Int64 = 0, readBandwidth: Int64 = 0, writeBandwidth: Int64 = 0) {
    self.iops = iops
    self.bandwidth = bandwidth
    self.readBandwidth = readBandwidth
    self.writeBandwidth = writeBandwidth
  }

  public var isNone: Bool { self == VolumeLimits() }
}
