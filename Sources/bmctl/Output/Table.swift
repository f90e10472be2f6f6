/// Rows under headings, in columns as wide as their content, as kubectl prints them.
package struct Table: Sendable, Hashable {
  package struct Column: Sendable, Hashable {
    package var heading: String
    /// Numbers stand at the right edge.
    package var right: Bool

    package init(_ heading: String, right: Bool = false) {
      self.heading = heading
      self.right = right
    }
  }

  package var columns: [Column]
  package var rows: [[String]]

  package init(_ columns: [Column], rows: [[String]] = []) {
    self.columns = columns
    self.rows = rows
  }

  /// The lines, without blanks at their ends.
  /// - Parameters:
  ///   - minimumWidths: Widths that rows printed before have set, for a table that grows while it is watched.
  ///   - style: Colours a cell; gets the column's index and the text, must not change the number of columns.
  package func lines(
    heading: Bool = true, minimumWidths: [Int] = [], style: (Int, String) -> String = { $1 }
  ) -> [String] {
    let widths = self.widths(minimum: minimumWidths)
    var lines: [String] = []
    if heading { lines.append(line(columns.map(\.heading), widths: widths, style: { $1 })) }
    for row in rows { lines.append(line(row.map(TextWidth.printable), widths: widths, style: style)) }
    return lines
  }

  package func widths(minimum: [Int] = []) -> [Int] {
    columns.indices.map { index in
      rows.reduce(max(TextWidth.columns(columns[index].heading), index < minimum.count ? minimum[index] : 0)) {
        max($0, index < $1.count ? TextWidth.columns(TextWidth.printable($1[index])) : 0)
      }
    }
  }

  private func line(_ cells: [String], widths: [Int], style: (Int, String) -> String) -> String {
    var line = ""
    for index in columns.indices {
      let cell = index < cells.count ? cells[index] : ""
      let blanks = String(repeating: " ", count: max(0, widths[index] - TextWidth.columns(cell)))
      let styled = cell.isEmpty ? cell : style(index, cell)
      line += columns[index].right ? blanks + styled : styled + blanks
      if index < columns.count - 1 { line += "   " }
    }
    while line.hasSuffix(" ") { line.removeLast() }
    return line
  }
}
