import JSON
import Testing
import bmctl

@Suite("The fleet at a glance")
struct FleetPictureTests {
  /// 2026-01-01T00:10:00Z
  static let now = 1_767_226_200.0

  static func host(_ name: String, _ phase: String, power: String, reason: String? = nil) -> JSONValue {
    var host: JSONValue = [
      "metadata": ["name": .string(name)], "status": ["phase": .string(phase), "power": .string(power)],
    ]
    if let reason {
      host["status"]?["conditions"] = [
        [
          "type": "Ready", "status": "False", "reason": .string(reason), "message": "no answer\u{1B}[31m",
          "lastTransitionTime": "2026-01-01T00:09:30Z",
        ]
      ]
    }
    return host
  }

  static func machine(_ name: String, _ phase: String, since: String = "2026-01-01T00:00:00Z", own: Double? = nil)
    -> JSONValue
  {
    [
      "metadata": ["name": .string(name), "namespace": "t", "creationTimestamp": .string(since)],
      "status": [
        "phase": .string(phase), "message": "waits for the guest",
        "timeline": own.map { ["ownSeconds": .number($0)] } ?? [:],
      ],
    ]
  }

  static let event: JSONValue = [
    "type": "Warning", "reason": "BMCFailed", "message": "no answer", "lastTimestamp": "2026-01-01T00:09:00Z",
    "involvedObject": ["kind": "BareMetalHost", "name": "h2"],
  ]

  static let summary = FleetSummary(
    hosts: [
      host("h1", "Claimed", power: "On"), host("h2", "Error", power: "Unknown", reason: "BMCFailed"),
      host("h3", "Available", power: "Off"),
    ],
    machines: (1...97).map { machine("m\($0)", "Running", own: Double($0) / 100) } + [
      machine("slow", "Starting", since: "2025-12-31T23:50:00Z"), machine("new", "Starting"),
      machine("off", "Stopped"),
    ],
    events: [event, ["type": "Normal"], ["type": "Warning", "involvedObject": ["kind": "Pod"]]], now: now)

  @Test("It counts phases, and names what is late, broken or was warned of")
  func counts() {
    let summary = Self.summary
    #expect(summary.hosts?.map(\.name) == ["Available", "Claimed", "Error"])
    #expect(summary.machines.map(\.count) == [97, 2, 1])
    #expect(summary.late.map(\.subject) == ["t/slow"], "ten minutes are the limit of Starting")
    #expect(summary.late.first?.age == 1200)
    #expect(summary.trouble.map(\.word) == ["BMCFailed"])
    #expect(summary.warnings.map(\.subject) == ["host/h2"])
    #expect(FleetSummary.quantile(0.95, of: summary.ownSeconds) == 0.93)
    #expect(FleetSummary.quantile(0.5, of: []) == nil)
  }

  @Test("Every line fits, nothing steers the terminal, and the bar shows the smallest share")
  func lines() {
    for (width, colors) in [(120, true), (60, false), (40, false)] {
      let picture = FleetPicture(style: Style(colors: colors, unicode: true), width: width, rows: 30)
      let lines = picture.lines(Self.summary, title: "https://api:6443")
      #expect(lines.count <= 30)
      if !colors {
        #expect(lines.allSatisfy { TextWidth.columns($0) <= max(width, 60) }, "\(lines.map { TextWidth.columns($0) })")
        #expect(lines.allSatisfy { !$0.contains("\u{1B}") })
        #expect(lines.contains { $0.hasPrefix("machines 100") && $0.hasSuffix("RSs") })
      }
      #expect(lines.contains { $0.contains("t/slow") && $0.contains("20m") })
    }
  }

  @Test("A fleet of thousands with much trouble is cut to the terminal's rows")
  func cut() {
    let machines = (0..<500).map { Self.machine("m\($0)", "Pending") }
    let hosts = (0..<500).map { Self.host("h\($0)", "Error", power: "Off", reason: "BMCFailed") }
    let summary = FleetSummary(hosts: hosts, machines: machines, events: [], now: Self.now)
    let lines = FleetPicture(style: Style(colors: false, unicode: true), width: 100, rows: 24).lines(
      summary, title: "t")
    #expect(lines.count <= 24)
    #expect(lines.count { $0.contains("more") } == 2)
    let empty = FleetSummary(hosts: nil, machines: [], events: [], now: Self.now)
    #expect(
      FleetPicture(style: Style(colors: false, unicode: true), width: 80, rows: 24).lines(empty, title: "t").contains(
        "nothing needs attention"))
  }
}
