package import IaaS
package import Kubernetes

/// How a machine's first start spent its time, as a chart of text.
package struct TimelineChart: Sendable, Hashable {
  package enum Share: Sendable, Hashable {
    /// What this system did.
    case own
    /// Firmware and the guest's boot, which nobody here controls.
    case guest
  }

  /// One stretch of the start; it ends at the point that it is named after.
  package struct Segment: Sendable, Hashable {
    package var name: String
    package var share: Share
    /// Seconds since the machine was applied.
    package var start: Double
    package var end: Double
    /// Whether its end was not reached yet; `end` is now.
    package var isOpen: Bool

    package var duration: Double { end - start }
  }

  package var segments: [Segment] = []
  package var ownSeconds: Double = 0
  package var guestSeconds: Double = 0
  package var totalSeconds: Double { ownSeconds + guestSeconds }
  package var isComplete = false

  private static let names: [(any KeyPath<BareMetalMachine.Timeline, MicroTimestamp?> & Sendable, String, Share)] = [
    (\.hostClaimed, "host claimed", .own), (\.volumesReady, "volumes cloned", .own),
    (\.disksAttached, "disks attached", .own), (\.poweredOn, "powered on", .own),
    (\.leased, "DHCP lease", .guest), (\.reachable, "answers ping", .guest),
  ]

  /// - Parameter now: Ends the stretch that is under way; nil where nothing is under way (a machine that is stopped).
  /// - Returns: nil before the machine was seen by its controller.
  package init?(_ timeline: BareMetalMachine.Timeline?, now: MicroTimestamp?) {
    guard let timeline, let applied = timeline.applied else { return nil }
    func seconds(_ moment: MicroTimestamp) -> Double {
      // Clocks of two computers may differ; a point is never before the first.
      max(0, Double(moment.microseconds - applied.microseconds) / 1_000_000)
    }
    var points: [(end: Double, name: String, share: Share)] = []
    for (path, name, share) in Self.names {
      if let moment = timeline[keyPath: path] { points.append((seconds(moment), name, share)) }
    }
    // Volumes and hosts are found at the same time: their order is what it was, not what the list says.
    points.sort { $0.end < $1.end }
    var start = 0.0
    for point in points {
      segments.append(Segment(name: point.name, share: point.share, start: start, end: point.end, isOpen: false))
      start = point.end
    }
    isComplete = timeline.reachable != nil
    if !isComplete, let now, let next = Self.names.first(where: { timeline[keyPath: $0.0] == nil }) {
      let isOn = timeline.poweredOn != nil
      segments.append(
        Segment(
          name: next.1, share: isOn ? .guest : .own, start: start, end: max(start, seconds(now)), isOpen: true))
    }
    let end = segments.last?.end ?? 0
    ownSeconds = timeline.poweredOn.map(seconds) ?? end
    guestSeconds = max(0, end - ownSeconds)
  }

  /// The chart's lines.
  /// - Parameter width: Columns of the terminal.
  package func lines(width: Int, style: Style) -> [String] {
    let nameWidth = segments.reduce(4) { max($0, TextWidth.columns($1.name) + ($1.isOpen ? 2 : 0)) }
    let barWidth = max(10, min(60, width - nameWidth - 31))
    var lines = [
      "  " + TextWidth.padded("STEP", to: nameWidth) + TextWidth.padded("AT", to: 13, right: true)
        + TextWidth.padded("TOOK", to: 13, right: true)
    ]
    lines.append("  " + TextWidth.padded("applied", to: nameWidth) + TextWidth.padded("0.00 s", to: 13, right: true))
    for segment in segments {
      let name = segment.isOpen ? "\(segment.name) …" : segment.name
      let at = segment.isOpen ? "" : DurationText.measured(seconds: segment.end)
      var line = "  " + TextWidth.padded(style.unicode ? name : name.replacingEllipsis(), to: nameWidth)
      line += TextWidth.padded(at, to: 13, right: true)
      line += TextWidth.padded(DurationText.measured(seconds: segment.duration), to: 13, right: true) + "  "
      line += style.paint(bar(segment, width: barWidth, unicode: style.unicode), segment.share == .own ? .cyan : .gray)
      lines.append(line)
    }
    lines.append("")
    lines.append(summary(style))
    return lines
  }

  private func summary(_ style: Style) -> String {
    let own = style.paint("own share \(DurationText.measured(seconds: ownSeconds))", .cyan)
    let percent = totalSeconds > 0 ? " (\(DurationText.fixed(ownSeconds / totalSeconds * 100, digits: 1)) %)" : ""
    let guest = style.paint("firmware and guest \(DurationText.measured(seconds: guestSeconds))", .gray)
    let total = "\(isComplete ? "total" : "so far") \(DurationText.measured(seconds: totalSeconds))"
    return "  \(own)\(percent), \(guest), \(total)"
  }

  /// The stretch in its place on a line that stands for the whole time. What is too short for a column is a thin mark.
  private func bar(_ segment: Segment, width: Int, unicode: Bool) -> String {
    let whole = max(segments.last?.end ?? 0, 0.000_001)
    let from = min(width - 1, Int(segment.start / whole * Double(width)))
    let exact = segment.duration / whole * Double(width)
    let length = min(width - from, Int(exact.rounded()))
    let blanks = String(repeating: " ", count: from)
    guard length > 0 else { return blanks + (unicode ? "▏" : "|") }
    let full = segment.isOpen ? (unicode ? "░" : ".") : (unicode ? "█" : "#")
    return blanks + String(repeating: full, count: length)
  }
}

extension String {
  fileprivate func replacingEllipsis() -> String { hasSuffix("…") ? dropLast() + "..." : self }
}
