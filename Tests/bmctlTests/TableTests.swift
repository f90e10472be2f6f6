import JSON
import Testing
import bmctl

@Suite("Tables")
struct TableTests {
  @Test("Columns are as wide as their widest cell, without blanks at the end of a line")
  func layout() {
    let table = Table(
      [.init("NAME"), .init("SIZE", right: true), .init("NOTE")], rows: [["a", "1", ""], ["longer", "1000", "x"]])
    #expect(
      table.lines() == [
        "NAME     SIZE   NOTE",
        "a           1",
        "longer   1000   x",
      ])
  }

  @Test("Chinese and emoji take two columns, combining marks none")
  func width() {
    #expect(TextWidth.columns("裸机") == 4)
    #expect(TextWidth.columns("e\u{301}") == 1)
    #expect(TextWidth.columns("🚀") == 2)
    #expect(TextWidth.columns("한국") == 4)
    #expect(TextWidth.columns("ascii") == 5)
    let table = Table([.init("A"), .init("B")], rows: [["裸机", "1"], ["x", "2"]])
    #expect(table.lines() == ["A      B", "裸机   1", "x      2"])
  }

  @Test("Text of other people cannot steer the terminal")
  func hostileText() {
    #expect(TextWidth.printable("a\u{1B}[2Jb\nc") == "a [2Jb c")
    #expect(TextWidth.printable("a\u{202E}b") == "ab")
    #expect(TextWidth.printable("a\u{9B}31m") == "a 31m")
    let table = Table([.init("A")], rows: [["\u{1B}]0;x\u{7}"]])
    #expect(table.lines(heading: false).allSatisfy { !$0.unicodeScalars.contains("\u{1B}") })
  }

  @Test("Cutting never makes a line longer than asked for", arguments: 0..<12)
  func truncation(width: Int) {
    for text in ["裸机服务", "abcdefghij", "a裸b机c", "🚀🚀🚀"] {
      #expect(TextWidth.columns(TextWidth.truncated(text, to: width)) <= max(width, 0))
    }
    #expect(TextWidth.truncated("abc", to: 3) == "abc")
    #expect(TextWidth.truncated("abcd", to: 3) == "ab…")
  }

  @Test("Ages as kubectl writes them")
  func ages() {
    let cases: [(Double, String)] = [
      (-3, "0s"), (0, "0s"), (119, "119s"), (120, "2m"), (125, "2m5s"), (600, "10m"), (10_799, "179m"),
      (10_800, "3h"), (12_000, "3h20m"), (28_800, "8h"), (172_800, "2d"), (180_000, "2d2h"), (691_200, "8d"),
      (63_072_000, "2y"), (.infinity, "<unknown>"), (.nan, "<unknown>"),
    ]
    for (seconds, text) in cases { #expect(DurationText.age(seconds: seconds) == text) }
  }

  @Test("Measured spans and amounts")
  func measures() {
    #expect(DurationText.measured(seconds: 0.0412) == "0.04 s")
    #expect(DurationText.measured(seconds: 9.996) == "10.0 s")
    #expect(DurationText.measured(seconds: 119.96) == "2 min 00 s")
    #expect(DurationText.measured(seconds: 125) == "2 min 05 s")
    #expect(DurationText.measured(seconds: .nan) == "?")
    #expect(DurationText.fixed(1e300, digits: 3) == "?")
    #expect(DurationText.fixed(-0.001, digits: 2) == "0.00")
    #expect(DurationText.fixed(2.005, digits: 1) == "2.0")
    #expect(DurationText.bytes(1536) == "1.5 KiB")
    #expect(DurationText.bytes(2 << 30) == "2 GiB")
    #expect(DurationText.bytes((1 << 20) - 1) == "1 MiB")
    #expect(DurationText.bytes(.max) == "8 EiB")
  }

  @Test("A machine's row shows what is known, and dashes for the rest")
  func machineRow() {
    let objects: [JSONValue] = [
      [
        "metadata": ["name": "bm-01", "namespace": "default", "creationTimestamp": "2026-01-01T00:00:00Z"],
        "status": [
          "phase": "Running", "host": "host-01", "addresses": [["interface": "eth0", "address": "192.168.77.10"]],
          "timeline": ["ownSeconds": 0.42, "totalSeconds": 43.21],
        ],
      ],
      ["metadata": ["name": "new"]],
      ["metadata": ["name": 7], "status": "nonsense"],
      ["metadata": ["name": "going", "deletionTimestamp": "2026-01-01T00:00:00Z"], "status": ["phase": "Running"]],
    ]
    let table = ResourceTable.table(.machines, objects, wide: true, namespaces: false, now: 1_767_225_630)
    #expect(table.rows[0] == ["bm-01", "Running", "host-01", "192.168.77.10", "0.42s", "43.2s", "30s", ""])
    #expect(table.rows[1] == ["new", "-", "-", "-", "-", "-", "<unknown>", ""])
    #expect(table.rows[3][1] == "Deleting")
    #expect(table.lines().count == 5)
  }

  @Test("Kinds are known by all the names that kubectl takes")
  func kinds() {
    for name in ["machine", "Machines", "bmm", "baremetalmachines.iaas.yusur.io"] {
      #expect(Resource(name: name) == .machines)
    }
    for name in ["host", "bmh", "BareMetalHosts"] { #expect(Resource(name: name) == .hosts) }
    #expect(Resource(name: "pods") == nil)
    #expect(Resource.split("machine/bm-01")?.name == "bm-01")
    #expect(Resource.split("machine/") == nil)
    #expect(Resource.split("machine") == nil)
  }

  @Test("Colours only on a terminal that wants them")
  func colours() {
    #expect(!Style.detect(isTerminal: false, environment: [:]).colors)
    #expect(Style.detect(isTerminal: true, environment: ["TERM": "xterm"]).colors)
    #expect(!Style.detect(isTerminal: true, environment: ["NO_COLOR": "1"]).colors)
    #expect(!Style.detect(isTerminal: true, environment: ["TERM": "dumb"]).colors)
    #expect(!Style.detect(isTerminal: true, environment: ["LANG": "C"]).unicode)
    #expect(Style.detect(isTerminal: true, environment: ["LC_ALL": "", "LANG": "de_DE.UTF-8"]).unicode)
    #expect(Style(colors: false, unicode: true).state("Running") == "Running")
  }
}
