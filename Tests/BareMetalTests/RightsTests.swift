import Foundation
import Testing
import Yams

/// The manifests in deploy/ let the roles do what their code does, and no more. Without a right the API server's refusal
/// would be all that is seen of it.
@Suite("Rights of the roles")
struct RightsTests {
  struct Rule {
    var kind: String
    var role: String
    var resource: String
    var verbs: Set<String>
    var names: [String]
  }

  /// The rules of all roles in a file, one for each resource.
  static func rules(_ file: String) throws -> [Rule] {
    let root = URL(filePath: #filePath).deletingLastPathComponent().deletingLastPathComponent()
      .deletingLastPathComponent()
    let text = try String(contentsOf: root.appending(path: "deploy/\(file)"), encoding: .utf8)
    var rules: [Rule] = []
    for document in try Yams.load_all(yaml: text) {
      guard let object = document as? [String: Any], let kind = object["kind"] as? String,
        kind == "Role" || kind == "ClusterRole"
      else { continue }
      let role = (object["metadata"] as? [String: Any])?["name"] as? String ?? ""
      for rule in object["rules"] as? [[String: Any]] ?? [] {
        for resource in rule["resources"] as? [String] ?? [] {
          rules.append(
            Rule(
              kind: kind, role: role, resource: resource, verbs: Set(rule["verbs"] as? [String] ?? []),
              names: rule["resourceNames"] as? [String] ?? []))
        }
      }
    }
    return rules
  }

  @Test("bm-controller may list the leases of the handlers, by which it sees that one is silent")
  func leases() throws {
    let rules = try Self.rules("rbac/bm-controller.yaml")
    #expect(rules.contains { $0.resource == "leases" && $0.verbs.contains("list") && $0.names.isEmpty })
  }

  @Test("bm-controller reads secrets outside of its namespace by a role of its own, which can be bound to few")
  func secrets() throws {
    let rules = try Self.rules("rbac/bm-controller.yaml").filter { $0.resource == "secrets" }
    #expect(Set(rules.map(\.role)) == ["ycloud:user-data-reader", "bm-controller"])
    for rule in rules where rule.kind == "ClusterRole" { #expect(rule.verbs == ["get"]) }
    let volumes = try Self.rules("rbac/bm-controller.yaml").filter { $0.resource == "persistentvolumes" }
    #expect(volumes.map(\.verbs) == [["get", "list", "watch"]])
  }

  @Test(
    "Users ask for migrations and give them up, and do not write how far they are; the word about power is operators'")
  func migrations() throws {
    let users = try Self.rules("rbac/users.yaml")
    #expect(users.contains { $0.resource == "baremetalmachinemigrations" && $0.verbs.contains("delete") })
    for rule in users where rule.resource == "baremetalmachinemigrations/status" {
      #expect(rule.verbs.isSubset(of: ["get", "list", "watch"]))
    }
    for rule in users where rule.resource == "baremetalhosts" { #expect(rule.role == "ycloud:host-operator") }
    let controller = try Self.rules("rbac/bm-controller.yaml").filter { $0.resource == "baremetalmachinemigrations" }
    #expect(controller.map(\.verbs) == [["get", "list", "watch", "create", "delete"]])
  }

  @Test("bm-controller may make and remove what snapshots, restores and clones of machines need, and no more of it")
  func life() throws {
    let rules = try Self.rules("rbac/bm-controller.yaml")
    func verbs(_ resource: String) -> Set<String> {
      rules.filter { $0.resource == resource }.reduce(into: []) { $0.formUnion($1.verbs) }
    }
    #expect(verbs("volumesnapshots") == ["get", "create", "patch", "delete"])
    #expect(verbs("volumesnapshotcontents") == [])
    #expect(verbs("baremetalmachinesnapshots") == ["get", "list", "watch", "create", "update", "patch"])
    for kind in ["restores", "clones"] {
      #expect(verbs("baremetalmachine\(kind)") == ["get", "list", "watch", "update", "patch"])
    }
    for kind in ["snapshots", "restores", "clones"] {
      #expect(verbs("baremetalmachine\(kind)/status") == ["get", "update", "patch"])
    }
    #expect(verbs("baremetalmachines").isSuperset(of: ["create", "delete"]))
    #expect(verbs("persistentvolumeclaims") == ["get", "list", "watch", "create", "delete"])
  }

  @Test("csi-controller may take and give back the attachment that keeps servers away during an upload")
  func uploads() throws {
    let rules = try Self.rules("rbac/csi-controller.yaml").filter { $0.resource == "volumeattachments" }
    #expect(rules.map(\.verbs) == [["get", "list", "watch", "create", "patch", "delete"]])
  }

  @Test("Whoever writes events may read them: after a restart the same event is there already and is counted up")
  func events() throws {
    for file in ["rbac/bm-controller.yaml", "rbac/csi-controller.yaml"] {
      let rules = try Self.rules(file).filter { $0.resource == "events" }
      #expect(rules.contains { $0.verbs == ["get", "create", "patch"] }, "\(file)")
    }
  }

  @Test("csi-controller makes and removes volumes and contents only, never what people made, and sees no secret")
  func storage() throws {
    let rules = try Self.rules("rbac/csi-controller.yaml").filter { $0.kind == "ClusterRole" }
    let makes = rules.filter { !$0.verbs.isDisjoint(with: ["create", "delete"]) && $0.resource != "events" }
    // The attachments are those that keep servers away during an upload.
    #expect(Set(makes.map(\.resource)) == ["persistentvolumes", "volumeattachments", "volumesnapshotcontents"])
    #expect(
      !rules.contains { $0.resource == "secrets" || $0.verbs.contains("*") || $0.verbs.contains("deletecollection") })
    for resource in ["volumesnapshots/status", "volumesnapshotcontents/status", "persistentvolumeclaims/status"] {
      #expect(rules.contains { $0.resource == resource && $0.verbs == ["patch"] }, "\(resource)")
    }
  }

  @Test("Users take snapshots and do not write their status, which names the content")
  func users() throws {
    let rules = try Self.rules("rbac/users.yaml").filter { $0.resource.hasPrefix("volumesnapshot") }
    #expect(rules.contains { $0.resource == "volumesnapshots" && $0.verbs.contains("create") })
    for rule in rules where rule.resource != "volumesnapshots" {
      #expect(rule.verbs == ["get", "list", "watch"], "\(rule.resource)")
    }
  }

  @Test("A handler reads and reports on its own host only, and writes no events")
  func handler() throws {
    let common = try Self.rules("rbac/bm-handler.yaml")
    #expect(Set(common.map(\.resource)) == ["volumeattachments", "volumeattachments/status"])
    let own = try Self.rules("hosts/bm-handler.yaml")
    #expect(own.contains { $0.resource == "baremetalhosts/status" && $0.verbs.contains("patch") })
    #expect(own.contains { $0.resource == "baremetalhosts" && $0.verbs == ["get", "list", "watch"] })
    for rule in own where rule.verbs != ["create"] {
      #expect(rule.names.count == 1 && rule.names.allSatisfy { $0.contains("${HOST}") }, "\(rule.resource)")
    }
  }
}
