import IaaS
import JSON
import Kubernetes
import Testing
import bmctl

@Suite("Timeline")
struct TimelineTests {
  private let plain = Style(colors: false, unicode: false)

  private func moment(_ milliseconds: Int64) -> MicroTimestamp {
    MicroTimestamp(microseconds: 1_767_225_600_000_000 + milliseconds * 1000)
  }

  private func complete() -> BareMetalMachine.Timeline {
    var timeline = BareMetalMachine.Timeline()
    timeline.applied = moment(0)
    timeline.hostClaimed = moment(40)
    timeline.volumesReady = moment(120)
    timeline.disksAttached = moment(600)
    timeline.poweredOn = moment(1000)
    timeline.leased = moment(19_000)
    timeline.reachable = moment(20_000)
    return timeline
  }

  @Test("Every stretch ends where the next begins, own share and guest make the total")
  func segments() throws {
    let chart = try #require(TimelineChart(complete(), now: nil))
    #expect(
      chart.segments.map(\.name) == [
        "host claimed", "volumes cloned", "disks attached", "powered on", "DHCP lease", "answers ping",
      ])
    for (one, next) in zip(chart.segments, chart.segments.dropFirst()) { #expect(one.end == next.start) }
    #expect(chart.ownSeconds == 1)
    #expect(chart.guestSeconds == 19)
    #expect(chart.totalSeconds == 20)
    #expect(chart.isComplete)
  }

  @Test("Volumes that were ready before the host come first")
  func order() throws {
    var timeline = complete()
    timeline.hostClaimed = moment(500)
    let chart = try #require(TimelineChart(timeline, now: nil))
    #expect(chart.segments.first?.name == "volumes cloned")
    #expect(chart.segments.allSatisfy { $0.duration >= 0 })
  }

  @Test("What is under way is open, and counts up to now")
  func underWay() throws {
    var timeline = complete()
    timeline.leased = nil
    timeline.reachable = nil
    let chart = try #require(TimelineChart(timeline, now: moment(11_000)))
    let last = try #require(chart.segments.last)
    #expect(last.isOpen && last.name == "DHCP lease" && last.duration == 10 && last.share == .guest)
    #expect(chart.guestSeconds == 10)
    #expect(!chart.isComplete)
    // A machine that was stopped in the middle is not under way.
    #expect(try #require(TimelineChart(timeline, now: nil)).segments.last?.isOpen == false)
  }

  @Test("Clocks that disagree never make a negative stretch")
  func clocks() throws {
    var timeline = complete()
    timeline.poweredOn = moment(-5000)
    let chart = try #require(TimelineChart(timeline, now: moment(-10_000)))
    #expect(chart.segments.allSatisfy { $0.duration >= 0 && $0.start >= 0 })
  }

  @Test("Nothing to show before the controller has seen the machine")
  func empty() {
    #expect(TimelineChart(nil, now: moment(0)) == nil)
    #expect(TimelineChart(BareMetalMachine.Timeline(), now: moment(0)) == nil)
  }

  @Test("The chart fits the terminal", arguments: [20, 80, 100, 400])
  func width(columns: Int) throws {
    let chart = try #require(TimelineChart(complete(), now: nil))
    let lines = chart.lines(width: columns, style: plain)
    #expect(lines.allSatisfy { $0.utf8.count <= max(columns, 72) })
    #expect(lines.contains { $0.contains("DHCP lease") && $0.contains("18.0 s") && $0.contains("##") })
    #expect(lines.last == "  own share 1.00 s (5.0 %), firmware and guest 19.0 s, total 20.0 s")
  }

  @Test("A point that cannot be read does not hide the others")
  func badPoint() throws {
    let timeline = try #require(
      BareMetalMachine.Timeline(json: [
        "applied": "2026-01-01T00:00:00.000000Z", "hostClaimed": "yesterday", "poweredOn": "2026-01-01T00:00:01Z",
      ]))
    #expect(timeline.hostClaimed == nil)
    #expect(timeline.poweredOn != nil)
    #expect(BareMetalMachine.Timeline(json: "x") == nil)
  }
}

@Suite("Waiting")
struct WaitGoalTests {
  private func machine(_ phase: String, generation: Int64 = 2, observed: Int64 = 2) -> JSONValue {
    [
      "metadata": ["name": "a", "generation": .integer(generation)],
      "status": ["phase": .string(phase), "observedGeneration": .integer(observed)],
    ]
  }

  @Test("Goals are phases, Ready and Deleted, in any case")
  func names() {
    for name in WaitGoal.names { #expect(WaitGoal(name.uppercased()) != nil) }
    #expect(WaitGoal("condition=Ready") == .ready)
    #expect(WaitGoal("Flying") == nil)
  }

  @Test("A phase counts only when it is about the latest spec")
  func generation() {
    #expect(WaitGoal.phase(.running).isReached(by: machine("Running")))
    #expect(!WaitGoal.phase(.running).isReached(by: machine("Running", generation: 3)))
    #expect(!WaitGoal.phase(.running).isReached(by: machine("Starting")))
    #expect(!WaitGoal.phase(.running).isReached(by: ["metadata": ["generation": 1]]))
  }

  @Test("After a restart was asked for, Running counts when the restart was acted on")
  func restart() {
    var object = machine("Running")
    object["metadata"]?["annotations"] = ["iaas.yusur.io/restart-requested": "2"]
    #expect(!WaitGoal.phase(.running).isReached(by: object))
    object["status"]?["observedRestart"] = "2"
    #expect(WaitGoal.phase(.running).isReached(by: object))
  }

  @Test("Ready is the condition")
  func ready() {
    var object = machine("Running")
    #expect(!WaitGoal.ready.isReached(by: object))
    object["status"]?["conditions"] = [["type": "Ready", "status": "True"]]
    #expect(WaitGoal.ready.isReached(by: object))
  }
}
