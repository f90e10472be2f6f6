/// The parts of a cloud as a table for people.
public enum StatusTable {
  public static func render(_ state: CloudState) -> String {
    var rows = [["PART", "STATE", "PID", "READY AFTER", "RESTARTS", "LAST"]]
    for part in state.parts {
      rows.append([
        part.name, part.phase.rawValue, part.pid.map { "\($0)" } ?? "-",
        part.readyAfterSeconds.map(LocalCloud.seconds) ?? "-", "\(part.restarts)",
        part.message.map { String($0.prefix(60)) } ?? "",
      ])
    }
    let widths = (0..<rows[0].count).map { column in rows.map { $0[column].count }.max() ?? 0 }
    return rows.map { row in
      let cells = zip(row, widths).map { cell, width in cell + String(repeating: " ", count: width - cell.count) }
      let line = cells.joined(separator: "  ")
      return String(line.reversed().drop { $0 == " " }.reversed())
    }.joined(separator: "\n")
  }
}
