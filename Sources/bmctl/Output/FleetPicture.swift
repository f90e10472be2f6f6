/// A fleet's summary as lines for a terminal or a pipe.
package struct FleetPicture: Sendable {
  package var style: Style
  package var width: Int
  /// Lines that there is room for; lists are cut to it.
  package var rows: Int

  package init(style: Style, width: Int, rows: Int) {
    self.style = style
    self.width = max(40, width)
    self.rows = max(12, rows)
  }

  /// - Parameter title: What stands in the first line, such as the time.
  package func lines(_ summary: FleetSummary, title: String) -> [String] {
    var lines = [style.paint(TextWidth.truncated(title, to: width), .bold)]
    if let hosts = summary.hosts {
      lines += section("hosts", hosts)
      if !hosts.isEmpty { lines.append("  power   " + words(summary.power)) }
    }
    lines += section("machines", summary.machines)
    lines += starts(summary)
    let lists = [
      ("above their time limit", summary.late, Style.Color.yellow), ("hosts with trouble", summary.trouble, .red),
      ("warnings of the last hour", summary.warnings, .yellow),
    ].filter { !$0.1.isEmpty }
    for (index, (name, notes, color)) in lists.enumerated() {
      // What is left is shared by the lists that are still to come.
      let room = max(3, (rows - lines.count) / (lists.count - index))
      lines += list(name, notes, color, room: room)
    }
    if lists.isEmpty { lines += ["", style.paint("nothing needs attention", .green)] }
    return lines
  }

  /// A heading with a bar of all shares, and a line of words.
  private func section(_ name: String, _ shares: [FleetSummary.Share]) -> [String] {
    let total = shares.reduce(0) { $0 + $1.count }
    let head = TextWidth.padded("\(name) \(total)", to: 16)
    guard total > 0 else { return ["", style.paint(head, .bold)] }
    return ["", style.paint(head, .bold) + bar(shares, total: total), "  " + words(shares)]
  }

  /// One cell for each share of the width; nothing that is there is without a cell.
  private func bar(_ shares: [FleetSummary.Share], total: Int) -> String {
    let room = min(60, width - 18)
    var cells = shares.map { max(1, $0.count * room / total) }
    // The largest gives and takes what rounding leaves.
    if let largest = cells.indices.max(by: { cells[$0] < cells[$1] }) {
      cells[largest] = max(1, cells[largest] + room - cells.reduce(0, +))
    }
    return zip(shares, cells).map { share, count in
      let mark = style.unicode && style.colors ? "█" : letter(of: share.name)
      return style.paint(String(repeating: mark, count: count), color(of: share.name))
    }.joined()
  }

  /// Without colours, a bar is made of the phases' letters; power's and the phases' never meet in one bar.
  private func letter(of name: String) -> String { name == "Stopped" ? "s" : String(name.prefix(1)) }

  private func color(of name: String) -> Style.Color {
    switch name {
    case "Running", "Available", "On": .green
    case "Claimed": .cyan
    case "Error", "Unknown": .red
    case "Stopped", "Off", "Maintenance": .gray
    default: .yellow
    }
  }

  private func words(_ shares: [FleetSummary.Share]) -> String {
    shares.map { style.paint($0.name, color(of: $0.name)) + " \($0.count)" }.joined(separator: "   ")
  }

  private func starts(_ summary: FleetSummary) -> [String] {
    func text(_ name: String, _ values: [Double]) -> String? {
      guard let median = FleetSummary.quantile(0.5, of: values), let high = FleetSummary.quantile(0.95, of: values)
      else { return nil }
      return "\(name) " + DurationText.measured(seconds: median) + ", 95 % within "
        + DurationText.measured(seconds: high)
    }
    let parts = [text("own share", summary.ownSeconds), text("to ping", summary.totalSeconds)].compactMap { $0 }
    return parts.isEmpty ? [] : ["  starts  " + parts.joined(separator: ";  ")]
  }

  private func list(_ name: String, _ notes: [FleetSummary.Note], _ color: Style.Color, room: Int) -> [String] {
    var lines = ["", style.paint("\(name) (\(notes.count))", .bold)]
    let shown = notes.prefix(max(1, room - 2 - (notes.count > room - 2 ? 1 : 0)))
    let subjects = shown.map { TextWidth.printable($0.subject) }
    let wordWidth = min(24, shown.map { TextWidth.columns(TextWidth.printable($0.word)) }.max() ?? 0)
    let subjectWidth = min(40, subjects.map { TextWidth.columns($0) }.max() ?? 0)
    for (note, subject) in zip(shown, subjects) {
      let word = TextWidth.truncated(TextWidth.printable(note.word), to: wordWidth)
      let start =
        "  " + TextWidth.padded(DurationText.age(seconds: note.age), to: 7, right: true) + "  "
        + TextWidth.padded(TextWidth.truncated(subject, to: subjectWidth), to: subjectWidth) + "  "
      let left = width - TextWidth.columns(start) - wordWidth - 2
      let message = left > 10 ? "  " + TextWidth.truncated(TextWidth.printable(note.message), to: left) : ""
      lines.append(start + style.paint(TextWidth.padded(word, to: wordWidth), color) + message)
    }
    if notes.count > shown.count { lines.append("           and \(notes.count - shown.count) more") }
    return lines
  }
}
