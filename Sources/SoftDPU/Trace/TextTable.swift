/// Rows of cells as lines, each column as wide as its widest cell.
enum TextTable {
  /// - Parameter leftAligned: the columns of words; the others, of numbers, end together.
  static func lines(_ rows: [[String]], leftAligned: Set<Int>) -> [String] {
    let widths = (rows.first ?? []).indices.map { column in rows.map { $0[column].count }.max() ?? 0 }
    return rows.map { cells in
      cells.enumerated().map { column, cell in
        let padding = String(repeating: " ", count: widths[column] - cell.count)
        // Nothing follows the last column.
        if leftAligned.contains(column) { return column == cells.count - 1 ? cell : cell + padding }
        return padding + cell
      }.joined(separator: "  ")
    }
  }
}
