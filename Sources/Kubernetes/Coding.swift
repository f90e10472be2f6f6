import JSON

#if canImport(FoundationEssentials)
  import FoundationEssentials
#else
  import Foundation
#endif

/// JSON in and out of typed values.
enum Coding {
  /// Schemas of custom resources nest deeper than the parser's own limit allows.
  private static let maximumDepth = 256

  static func decode<T: Decodable>(_ type: T.Type, from bytes: some Collection<UInt8>) throws -> T {
    // Values without a static shape have a parser of their own, several times as fast as Codable.
    if type == JSONValue.self, let value = try JSONParser.parse(bytes, maximumDepth: maximumDepth) as? T {
      return value
    }
    if type == DynamicObject.self {
      let object = DynamicObject(content: try JSONParser.parse(bytes, maximumDepth: maximumDepth))
      if let value = object as? T { return value }
    }
    let decoder = JSONDecoder()
    decoder.dataDecodingStrategy = .base64
    return try decoder.decode(type, from: Data(bytes))
  }

  static func encode(_ value: some Encodable) throws -> [UInt8] {
    if let value = value as? JSONValue { return value.serialize() }
    if let value = value as? DynamicObject { return value.content.serialize() }
    let encoder = JSONEncoder()
    encoder.outputFormatting = [.sortedKeys, .withoutEscapingSlashes]
    encoder.dataEncodingStrategy = .base64
    return Array(try encoder.encode(value))
  }
}
