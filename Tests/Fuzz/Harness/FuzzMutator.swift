private let numbers: [UInt8] = [0, 1, 2, 3, 4, 7, 8, 16, 31, 32, 63, 64, 127, 128, 129, 254, 255]
private let words: [[UInt8]] = [
  "null", "true", "-1", "0", "1e308", "9223372036854775807", "9223372036854775808", "-9223372036854775808", "\"\"",
  "{}", "[]", "\\u0000", "\\ud800", "512", "4096", "18446744073709551615", "0.5", "[[[[", "{\"a\":", ",",
].map { Array($0.utf8) }

/// Changes inputs at random, the same way for the same seed.
public struct FuzzMutator<Generator: RandomNumberGenerator> {
  private var generator: Generator

  public init(_ generator: Generator) { self.generator = generator }

  private mutating func next() -> UInt64 { generator.next() }

  private mutating func below(_ limit: Int) -> Int { limit > 0 ? Int(next() % UInt64(limit)) : 0 }

  /// A few changes to one of the inputs; at most `maximumLength` bytes.
  public mutating func mutate(_ inputs: [[UInt8]], maximumLength: Int = 4096) -> [UInt8] {
    var input = inputs.isEmpty ? [] : inputs[below(inputs.count)]
    for _ in 0...below(6) { change(&input, inputs) }
    return Array(input.prefix(maximumLength))
  }

  private mutating func change(_ input: inout [UInt8], _ inputs: [[UInt8]]) {
    let place = below(input.count)
    switch below(11) {
    case 0 where !input.isEmpty: input[place] ^= 1 << UInt8(below(8))
    case 1 where !input.isEmpty: input[place] = UInt8(truncatingIfNeeded: next())
    case 2 where !input.isEmpty: input[place] = numbers[below(numbers.count)]
    case 3 where !input.isEmpty: input[place] &+= below(2) == 0 ? 1 : 255
    case 4: input.insert(contentsOf: (0...below(8)).map { _ in UInt8(truncatingIfNeeded: next()) }, at: place)
    case 5 where !input.isEmpty: input.removeSubrange(place..<min(input.count, place + 1 + below(8)))
    case 6 where !input.isEmpty:
      // A piece once more, somewhere else.
      let piece = input[place..<min(input.count, place + 1 + below(64))]
      input.insert(contentsOf: piece, at: below(input.count + 1))
    case 7 where !inputs.isEmpty:
      // The end of another input, or a piece of it.
      let other = inputs[below(inputs.count)]
      let from = below(other.count)
      let piece = other[from..<min(other.count, from + 1 + below(256))]
      if below(2) == 0 { input.removeSubrange(place...) }
      input.insert(contentsOf: piece, at: min(place, input.count))
    case 8: input.insert(contentsOf: words[below(words.count)], at: place)
    case 9 where input.count > 1: input.removeSubrange(max(1, place)...)
    default:
      for index in 0..<min(4, input.count - place) where !input.isEmpty {
        input[place + index] = below(2) == 0 ? 0 : 255
      }
    }
  }
}
