import JSON
import TestSupport
import Testing
import Yams
import bmctl

@Suite("Documents")
struct DocumentTests {
  @Test("JSON is indented as kubectl's and parses back")
  func json() throws {
    let value: JSONValue = ["a": [1, ["b": []]], "c": [:], "d": "x\"y"]
    let text = DocumentText.json(value)
    #expect(text.hasPrefix("{\n    \"a\": [\n        1,\n"))
    #expect(try JSONValue.parse(text) == value)
  }

  @Test("YAML looks as kubectl's")
  func yaml() {
    let value: JSONValue = [
      "metadata": ["name": "bm-01", "labels": ["a/b": "true", "n": "1"]],
      "spec": ["disks": [["name": "root", "tags": ["x", "y"]]], "running": true, "text": "one\ntwo\n"],
    ]
    #expect(
      DocumentText.yaml(value) == """
        metadata:
          labels:
            a/b: "true"
            "n": "1"
          name: bm-01
        spec:
          disks:
          - name: root
            tags:
            - x
            - "y"
          running: true
          text: |
            one
            two

        """)
  }

  @Test("Whatever a string holds, a YAML parser reads the same value")
  func yamlParsesBack() throws {
    let strings = [
      "", " ", "a: b", "a:b", "- x", "#x", "a #b", "'", "\"", "yes", "NO", "null", "~", "1", "1.5", "0x10", "1e3",
      "2026-01-01", "a\nb", "a\nb\n", "a\n\nb\n\n", " a\nb", "\n", "\ta", "a\tb", "a\r\nb", "é", "裸机", "\u{1B}[0m",
      "\u{85}", "\u{2028}", "{a}", "[a]", "*a", "&a", "!a", "%a", "@a", "`a`", "a, b", "a]", "a}", "?", "? a", "=",
      "<<", "|", ">", "a\\b", "true ", "key:", "x: ", "/a b", "a\n# b", "a\n---\nb", "a\n  b\n c", ".inf", "nan",
      "a\u{FEFF}b", "12:30", "a b  c", "e", "a\n \nb",
    ]
    for string in strings {
      let value: JSONValue = ["k": .string(string), "l": [.string(string), ["m": .string(string)]]]
      let text = DocumentText.yaml(value)
      let node = try #require(try Yams.compose(yaml: text), "\(text)")
      #expect(node["k"]?.string == string, "\(text)")
      #expect(node["l"]?[0]?.string == string, "\(text)")
      #expect(node["l"]?[1]?["m"]?.string == string, "\(text)")
      #expect(node["k"]?.tag == Tag(.str), "'\(string)' is read as \(node["k"]?.tag.description ?? "")")
    }
  }

  @Test("Keys are strings for a YAML parser too", arguments: ["y", "1", "a b", "a:b", "", "null", "-", "x: y", "#"])
  func yamlKeys(key: String) throws {
    let value: JSONValue = .object([key: 1])
    let node = try #require(try Yams.compose(yaml: DocumentText.yaml(value)))
    let read = try #require(node.mapping?.first)
    #expect(read.key.string == key)
    #expect(read.key.tag == Tag(.str))
  }

  @Test("Random values survive YAML", arguments: [UInt64(1), 2, 3, 4])
  func yamlFuzz(seed: UInt64) throws {
    var random = SeededGenerator(seed: seed)
    for _ in 0..<200 {
      let value: JSONValue = ["v": Self.random(&random, depth: 0)]
      let text = DocumentText.yaml(value)
      let node = try #require(try Yams.compose(yaml: text), "seed \(seed): \(text)")
      #expect(Self.equal(value, node), "seed \(seed): \(text)")
    }
  }

  private static func random(_ random: inout SeededGenerator, depth: Int) -> JSONValue {
    switch Int.random(in: 0..<(depth > 3 ? 3 : 5), using: &random) {
    case 0: return .integer(Int64.random(in: -1000...1000, using: &random))
    case 1: return .bool(Bool.random(using: &random))
    case 2:
      let alphabet = Array("ab1 :-#'\"\n\t{}[],&*!|>%@`\\~=.é".unicodeScalars)
      var text = String.UnicodeScalarView()
      for _ in 0..<Int.random(in: 0...8, using: &random) {
        text.append(alphabet[Int.random(in: 0..<alphabet.count, using: &random)])
      }
      return .string(String(text))
    case 3:
      return .array((0..<Int.random(in: 0...3, using: &random)).map { _ in Self.random(&random, depth: depth + 1) })
    default:
      var members: [String: JSONValue] = [:]
      for index in 0..<Int.random(in: 0...3, using: &random) {
        members["k\(index)"] = Self.random(&random, depth: depth + 1)
      }
      return .object(members)
    }
  }

  private static func equal(_ value: JSONValue, _ node: Node) -> Bool {
    switch value {
    case .null: node.tag == Tag(.null)
    case .bool(let bool): node.bool == bool
    case .integer(let integer): node.int == Int(integer)
    case .number(let number): node.float == number
    case .string(let string): node.string == string && node.tag == Tag(.str)
    case .array(let elements):
      node.sequence?.count == elements.count && zip(elements, node.sequence ?? []).allSatisfy { equal($0, $1) }
    case .object(let members):
      node.mapping?.count == members.count
        && members.allSatisfy { key, value in node.mapping?[Node(key)].map { equal(value, $0) } ?? false }
    }
  }
}
