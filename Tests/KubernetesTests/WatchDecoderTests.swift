import JSON
import Kubernetes
import TestSupport
import Testing

@Suite struct WatchDecoderTests {
  private static let stream = """
    {"type":"ADDED","object":{"kind":"ConfigMap","apiVersion":"v1","metadata":{"name":"a","resourceVersion":"5"},"data":{"k":"v\\n"}}}
    {"type":"MODIFIED","object":{"metadata":{"name":"a","resourceVersion":"6"}}}

    {"type":"BOOKMARK","object":{"kind":"ConfigMap","apiVersion":"v1","metadata":{"resourceVersion":"9"}}}\r
    {"type":"FUTURE","object":{"anything":true}}
    {"type":"DELETED","object":{"metadata":{"name":"a","resourceVersion":"10"}}}
    {"type":"ERROR","object":{"kind":"Status","status":"Failure","message":"too old","reason":"Expired","code":410}}

    """

  private func names(_ decoder: inout WatchDecoder<ConfigMap>) throws -> [String] {
    var result: [String] = []
    while let event = try decoder.next() {
      switch event {
      case .change(let change, let object): result.append("\(change) \(object.metadata.resourceVersion ?? "")")
      case .bookmark(let version): result.append("bookmark \(version)")
      case .error(let status): result.append("error \(status.code ?? 0) \(status.reason ?? "")")
      case .unknown(let type): result.append("unknown \(type)")
      }
    }
    return result
  }

  private let expected = ["added 5", "modified 6", "bookmark 9", "deleted 10", "error 410 Expired"]

  @Test func decodesAWholeStream() throws {
    var decoder = WatchDecoder<ConfigMap>(maximumEventBytes: 4096)
    decoder.append(Self.stream.utf8)
    let result = try names(&decoder)
    #expect(result == expected)
    #expect(!decoder.hasPartialEvent)
  }

  @Test(arguments: [1, 2, 3, 7, 64])
  func decodesTheSameInWhateverPieces(size: Int) throws {
    var decoder = WatchDecoder<ConfigMap>(maximumEventBytes: 4096)
    let bytes = Array(Self.stream.utf8)
    var result: [String] = []
    for start in stride(from: 0, to: bytes.count, by: size) {
      decoder.append(bytes[start..<min(start + size, bytes.count)])
      result += try names(&decoder)
    }
    #expect(result == expected)
  }

  @Test func aCutEventIsNoticed() throws {
    var decoder = WatchDecoder<ConfigMap>(maximumEventBytes: 4096)
    decoder.append(Self.stream.utf8.prefix(40))
    let event = try decoder.next()
    #expect(event == nil)
    #expect(decoder.hasPartialEvent)
  }

  @Test func anEndlessLineIsRefusedBeforeItFillsTheMemory() throws {
    var decoder = WatchDecoder<ConfigMap>(maximumEventBytes: 1000)
    #expect(throws: KubernetesError.self) {
      for _ in 0..<100 {
        decoder.append([UInt8](repeating: UInt8(ascii: "x"), count: 100))
        _ = try decoder.next()
      }
    }
  }

  @Test func garbageIsAnErrorAndNeverATrap() {
    var random = SeededGenerator(seed: 1)
    let template = Array(Self.stream.utf8)
    for _ in 0..<3000 {
      var decoder = WatchDecoder<ConfigMap>(maximumEventBytes: 2048)
      var dynamic = WatchDecoder<DynamicObject>(maximumEventBytes: 2048)
      var bytes = random.next() % 4 == 0 ? random.bytes(200) : template
      for _ in 0..<(1 + random.next() % 8) {
        bytes[Int(random.next() % UInt64(bytes.count))] = UInt8(truncatingIfNeeded: random.next())
      }
      decoder.append(bytes)
      dynamic.append(bytes)
      do { while try decoder.next() != nil {} } catch { #expect(error.code == .invalidResponse) }
      do { while try dynamic.next() != nil {} } catch { #expect(error.code == .invalidResponse) }
    }
  }

  @Test func anObjectOfAWrongShapeKeepsItsMetadata() throws {
    var decoder = WatchDecoder<Item<ConfigMap>>(maximumEventBytes: 4096)
    decoder.append(#"{"type":"ADDED","object":{"metadata":{"name":"a","resourceVersion":"7"},"data":5}}"#.utf8)
    decoder.append("\n".utf8)
    guard case .change(.added, .undecodable(let meta, _)) = try decoder.next() else {
      Issue.record("expected an undecodable object")
      return
    }
    #expect(meta.name == "a")
    #expect(meta.resourceVersion == "7")
  }
}
