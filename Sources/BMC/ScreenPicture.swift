/// What a server's screen showed, as a PNG (RFC 2083).
///
/// A BMC sends it and people's programs open it, so that it is one, and of which size, is looked at; what is drawn in it
/// is the server's own affair.
public struct ScreenPicture: Sendable, Hashable {
  public let png: [UInt8]
  /// In points.
  public let width: Int
  public let height: Int

  /// The longest picture that is taken, in bytes.
  public static let bytesMax = 8 << 20
  /// The widest and the highest, in points.
  public static let sideMax = 16_384
  /// The first bytes of every PNG.
  public static let signature: [UInt8] = [0x89, 0x50, 0x4E, 0x47, 0x0D, 0x0A, 0x1A, 0x0A]

  /// Why something is no picture of a screen.
  public struct Problem: Error, Sendable, Hashable, CustomStringConvertible {
    public let description: String
  }

  /// Takes a PNG with a head and an end, of a size that a screen can have. What follows behind the end is left out.
  public init(png: [UInt8]) throws(Problem) {
    guard png.count <= Self.bytesMax else {
      throw Problem(description: "it has \(png.count) bytes, which is more than \(Self.bytesMax)")
    }
    guard png.starts(with: Self.signature) else { throw Problem(description: "it is no PNG") }
    func number(at index: Int) -> Int { png[index..<(index + 4)].reduce(0) { $0 << 8 | Int($1) } }
    // A chunk is its length, its name, as many bytes, and a checksum; the first one is the head, the last one empty.
    guard png.count >= 33, number(at: 8) == 13, png[12..<16].elementsEqual("IHDR".utf8) else {
      throw Problem(description: "it is a PNG without a head")
    }
    let (width, height) = (number(at: 16), number(at: 20))
    guard (1...Self.sideMax).contains(width), (1...Self.sideMax).contains(height) else {
      throw Problem(description: "it is \(width) by \(height) points, and no screen has more than \(Self.sideMax)")
    }
    var place = Self.signature.count
    var isEnded = false
    while !isEnded {
      guard png.count - place >= 12, number(at: place) <= png.count - place - 12 else {
        throw Problem(description: "it is a PNG that is cut off")
      }
      isEnded = png[(place + 4)..<(place + 8)].elementsEqual("IEND".utf8)
      place += 12 + number(at: place)
    }
    self.png = place == png.count ? png : Array(png[..<place])
    self.width = width
    self.height = height
  }
}
