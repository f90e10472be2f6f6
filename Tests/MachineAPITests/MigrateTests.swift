import IaaS
import JSON
import Kubernetes
import MachineAPI
import TestSupport
import Testing

@Suite struct MigrateTests {
  private func machine(host: String? = "host-01", uid: String = "u") -> BareMetalMachine {
    var metadata = ObjectMeta(name: "bm-01", namespace: "team")
    metadata.uid = uid
    metadata.resourceVersion = "7"
    var machine = BareMetalMachine(metadata: metadata, spec: .init(disks: []))
    machine.status = .init()
    machine.status?.host = host
    return machine
  }

  private func decide(
    _ machine: BareMetalMachine, _ options: VerbOptions = VerbOptions(), _ present: [BareMetalMachineMigration] = []
  ) throws -> MigrateVerb.Decision {
    try MigrateVerb.decide(machine, options, present: present, now: .now())
  }

  private func isUnchanged(_ decision: MigrateVerb.Decision) -> Bool {
    if case .unchanged = decision { true } else { false }
  }

  private func conflict(
    _ machine: BareMetalMachine, _ options: VerbOptions = VerbOptions(), _ present: [BareMetalMachineMigration] = []
  ) -> APIFailure? {
    do {
      _ = try decide(machine, options, present)
      return nil
    } catch {
      return error as? APIFailure
    }
  }

  @Test func theMigrationIsWhatWasAskedFor() throws {
    var options = VerbOptions()
    options.hostLabels = ["rack": "b"]
    options.graceSeconds = 0
    guard case .create(let migration) = try decide(machine(), options) else {
      Issue.record("nothing is made")
      return
    }
    #expect(
      migration.spec
        == .init(machineName: "bm-01", hostSelector: .init(matchLabels: ["rack": "b"]), graceSeconds: 0))
    #expect(migration.metadata.namespace == "team")
    #expect(migration.metadata.ownerReferences?.map(\.uid) == ["u"])
    #expect(migration.metadata.name?.hasPrefix("bm-01-") == true)
    options = VerbOptions()
    options.requestID = "one"
    guard case .create(let named) = try decide(machine(), options) else {
      Issue.record("nothing is made")
      return
    }
    #expect(named.metadata.name == "bm-01-request-one")
  }

  @Test func oneMoveAtATime() throws {
    var options = VerbOptions()
    options.targetHost = "host-02"
    guard case .create(var present) = try decide(machine(), options) else {
      Issue.record("nothing is made")
      return
    }
    // The same wish is done already; another one is told what is in its way.
    #expect(isUnchanged(try decide(machine(), options, [present])))
    let failure = try #require(conflict(machine(), VerbOptions(), [present]))
    #expect(failure.code == 409 && failure.message.contains(present.key.name))
    // Another machine's is in nobody's way, nor is one that is over.
    var other = present
    other.spec.machineName = "bm-02"
    #expect(!isUnchanged(try decide(machine(), options, [other])))
    present.status = .init()
    present.status?.phase = .succeeded
    #expect(!isUnchanged(try decide(machine(), options, [present])))
    // Where it is to go it is already.
    #expect(isUnchanged(try decide(machine(host: "host-02"), options, [present])))
  }

  @Test func aRequestThatIsRepeatedIsOneRequest() throws {
    var options = VerbOptions()
    options.requestID = "one"
    guard case .create(var present) = try decide(machine(), options) else {
      Issue.record("nothing is made")
      return
    }
    present.status = .init()
    present.status?.phase = .succeeded
    #expect(isUnchanged(try decide(machine(), options, [present])))
    // One id, two wishes; and one name, two machines.
    var changed = options
    changed.graceSeconds = 5
    #expect(conflict(machine(), changed, [present])?.code == 409)
    #expect(conflict(machine(uid: "v"), options, [present])?.code == 409)
  }

  @Test func whatCannotBeMovedIsRefused() throws {
    var options = VerbOptions()
    #expect(conflict(machine(host: nil))?.code == 409)
    options.uid = "another"
    #expect(conflict(machine(), options)?.code == 409)
    options = VerbOptions()
    options.resourceVersion = "6"
    #expect(conflict(machine(), options)?.code == 409)
    var deleted = machine()
    deleted.metadata.deletionTimestamp = Timestamp(MicroTimestamp.now().date)
    #expect(conflict(deleted)?.code == 409)
  }

  /// Through kube-apiserver: who may, what is made, and how a second request is answered.
  @Test(.timeLimit(.minutes(5))) func aMoveIsAskedForThroughTheAPIServer() async throws {
    let installation = try await Installation.start()
    let path = installation.path("migrate")
    let alice = try installation.client(as: "alice")
    func migrations() async throws -> [BareMetalMachineMigration] {
      try await installation.client.listAll(BareMetalMachineMigration.self, namespace: installation.namespace).items
    }
    func failure(_ user: String, _ body: JSONValue? = nil) async throws -> KubernetesError? {
      let client = try installation.client(as: user)
      do {
        _ = try await client.request(method: "PUT", path: path, body: body)
        return nil
      } catch let error as KubernetesError {
        return error
      }
    }
    for user in ["bob", "mallory"] { #expect(try await failure(user)?.code == .forbidden) }
    #expect(try await failure("alice", ["targetHost": "../x"])?.causes.first?.field == "targetHost")
    #expect(try await failure("alice", ["preconditions": ["uid": "another"]])?.code == .conflict)
    let dry = try await alice.request(method: "PUT", path: path, query: [("dryRun", "All")])
    #expect(dry["message"]?.stringValue?.contains("dry run") == true)
    #expect(try await migrations().isEmpty)

    let body: JSONValue = ["targetHost": "host-02", "graceSeconds": 5, "requestID": "one"]
    let answer = try await alice.request(method: "PUT", path: path, body: body)
    #expect(answer["message"]?.stringValue == "bm-01 moves by the migration bm-01-request-one")
    let made = try #require(try await migrations().first)
    #expect(made.spec == .init(machineName: "bm-01", targetHost: "host-02", graceSeconds: 5))
    #expect(made.metadata.ownerReferences?.first?.uid == (try await installation.machineObject().metadata.uid))
    let again = try await alice.request(method: "PUT", path: path, body: body)
    #expect(again["message"]?.stringValue?.contains("asked this already") == true)
    #expect(try await failure("alice", ["targetHost": "host-03"])?.code == .conflict)
    #expect(try await migrations().count == 1)
    // With the same words in all: it is under way already.
    let same = try await alice.request(
      method: "PUT", path: path, body: ["targetHost": "host-02", "graceSeconds": 5, "requestID": "two"])
    #expect(same["message"]?.stringValue?.contains("being moved already") == true)
    #expect(try await migrations().count == 1)
    // bm-api may make migrations, and neither change nor remove them.
    let account = try Installation.makeClient(
      installation.plane, as: "ycloud:bm-api", groups: ["system:authenticated"])
    await #expect(throws: KubernetesError.self) {
      try await account.delete(
        BareMetalMachineMigration.self, name: made.key.name, namespace: installation.namespace)
    }
    #expect(try await migrations().count == 1)
  }
}
