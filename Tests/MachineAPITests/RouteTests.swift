import JSON
import MachineAPI
import Testing

@Suite struct RouteTests {
  private static let root = "/apis/subresources.iaas.yusur.io/v1"

  private func failure(_ method: String, _ path: String) -> APIFailure? {
    do {
      _ = try Route.parse(method: method, path: path)
      return nil
    } catch {
      return error
    }
  }

  @Test(arguments: MachineVerb.allCases) func eachVerbHasItsMethodAndItsRight(verb: MachineVerb) throws {
    let path = "\(Self.root)/namespaces/team/baremetalmachines/bm-01/\(verb.rawValue)"
    let route = try Route.parse(method: verb.method, path: path)
    #expect(route == .machine(verb, namespace: "team", name: "bm-01"))
    #expect(
      route.access(path: path)
        == .machine(
          verb: verb.method == "PUT" ? "update" : "get", subresource: verb.rawValue, namespace: "team", name: "bm-01"))
    #expect(failure(verb.method == "PUT" ? "GET" : "PUT", path)?.code == 405)
  }

  @Test(arguments: [
    "namespaces/../baremetalmachines/bm-01/start", "namespaces/team/baremetalmachines/../start",
    "namespaces/team/baremetalmachines/%2e%2e/start", "namespaces/TEAM/baremetalmachines/bm/start",
    "namespaces/team/baremetalmachines//start", "namespaces/team/baremetalmachines/-bm/start",
    "namespaces/team/baremetalmachines/bm_1/start", "namespaces/a.b/baremetalmachines/bm/start",
  ]) func namesThatNoObjectHasAreRefused(path: String) {
    #expect(failure("PUT", "\(Self.root)/\(path)")?.code == 400)
  }

  @Test(arguments: [
    "/", "/api", "/apis/iaas.yusur.io/v1", "\(root)/namespaces", "\(root)/namespaces/team/baremetalmachines/bm-01",
    "\(root)/namespaces/team/baremetalmachines/bm-01/start/again", "\(root)/namespaces/team/baremetalhosts/h/start",
    "\(root)/namespaces/team/baremetalmachines/bm-01/secrets", "\(root)2",
  ]) func whatIsNotThereIsNotFound(path: String) {
    #expect(failure("GET", path)?.code == 404)
  }

  @Test func discoveryListsWhatIsRouted() throws {
    let resources = try #require(Discovery.resources["resources"]?.arrayValue)
    #expect(resources.count == MachineVerb.allCases.count)
    for verb in MachineVerb.allCases {
      let resource = try #require(
        resources.first { $0["name"]?.stringValue == "baremetalmachines/\(verb.rawValue)" })
      #expect(resource["verbs"] == [.string(verb.access)])
    }
    // Every operation of the schema has an identifier of its own, or kube-apiserver refuses the whole.
    let operations = (Discovery.openAPI2["paths"]?.objectValue ?? [:]).values.flatMap {
      ($0.objectValue ?? [:]).values.compactMap { $0["operationId"]?.stringValue }
    }
    #expect(Set(operations).count == MachineVerb.allCases.count)
  }
}

@Suite struct OptionsTests {
  private func options(
    _ verb: MachineVerb, _ body: String, query: String = "", type: String? = "application/json"
  ) throws -> VerbOptions {
    let headers = type.map { [(name: "Content-Type", value: $0)] } ?? []
    let request = try APIRequest(
      method: "PUT", target: "/x?\(query)", proof: Proof(certificate: nil, headers: headers), body: Array(body.utf8))
    return try VerbOptions(verb, request: request)
  }

  private func failure(_ verb: MachineVerb, _ body: String, query: String = "", type: String? = nil) -> APIFailure? {
    do {
      _ = try options(verb, body, query: query, type: type)
      return nil
    } catch {
      return error as? APIFailure
    }
  }

  @Test func anEmptyBodyIsEnoughForPower() throws {
    #expect(try options(.start, "") == VerbOptions())
    #expect(try options(.reset, " \n", type: nil) == VerbOptions())
    #expect(try options(.stop, "{}") == VerbOptions())
  }

  @Test func aMoveSaysWhereTo() throws {
    let options = try options(
      .migrate, #"{"kind":"MigrateOptions","hostSelector":{"matchLabels":{"rack":"b"}},"graceSeconds":0}"#)
    #expect(options.hostLabels == ["rack": "b"] && options.graceSeconds == 0 && options.targetHost == nil)
    #expect(try self.options(.migrate, #"{"targetHost":"host-07","requestID":"a-1"}"#).targetHost == "host-07")
  }

  @Test func bothWaysOfAskingForADryRunCount() throws {
    #expect(try options(.start, "", query: "dryRun=All").isDryRun)
    #expect(try options(.start, #"{"dryRun":["All"]}"#).isDryRun)
    #expect(failure(.start, "", query: "dryRun=true")?.field == "dryRun")
    #expect(failure(.start, "", query: "dryRun=All&dryRun=All")?.field == "dryRun")
  }

  @Test(arguments: [
    (MachineVerb.start, #"{"force":true}"#, "force"), (.start, #"{"kind":"StopOptions"}"#, "kind"),
    (.start, #"{"apiVersion":"v1"}"#, "apiVersion"), (.start, #"{"requestID":"a"}"#, "requestID"),
    (.restart, #"{"requestID":"A B"}"#, "requestID"), (.restart, #"{"requestID":""}"#, "requestID"),
    (.start, #"{"preconditions":{"name":"x"}}"#, "preconditions.name"), (.adddisk, "{}", "disk"),
    (.adddisk, #"{"disk":{"size":"1Gi"}}"#, "disk.name"), (.removedisk, #"{"name":7}"#, "name"),
    (.removedisk, "", "name"), (.start, #"{"targetHost":"h"}"#, "targetHost"),
    (.migrate, #"{"targetHost":"Host"}"#, "targetHost"), (.migrate, #"{"graceSeconds":1.5}"#, "graceSeconds"),
    (.migrate, #"{"graceSeconds":3601}"#, "graceSeconds"), (.migrate, #"{"requestID":"a/b"}"#, "requestID"),
    (.migrate, #"{"hostSelector":{"matchExpressions":[]}}"#, "hostSelector.matchExpressions"),
    (.migrate, #"{"hostSelector":{"matchLabels":{"a":1}}}"#, "hostSelector.matchLabels"),
    (.migrate, #"{"hostSelector":{"matchLabels":{"a":"b"}},"targetHost":"h"}"#, "hostSelector"),
  ]) func whatIsWrongIsNamed(verb: MachineVerb, body: String, field: String) {
    let failure = failure(verb, body)
    #expect(failure?.code == 400)
    #expect(failure?.field == field)
    #expect(failure?.body["details"]?["causes"]?[0]?["field"]?.stringValue == field)
  }

  @Test(arguments: ["[]", "7", "{", "null", #"{"dryRun":["All"]} x"#, "\u{FEFF}{}"]) func whatIsNoObjectIsRefused(
    body: String
  ) {
    #expect(failure(.start, body)?.code == 400)
  }

  @Test func otherKindsOfBodiesAreRefused() {
    #expect(failure(.start, "a: 1", type: "application/yaml")?.code == 415)
  }

  @Test func parametersThatAVerbDoesNotHaveAreRefused() throws {
    let proof = Proof(certificate: nil, headers: [])
    let request = try APIRequest(method: "GET", target: "/x?takover=true&pretty=true", proof: proof, body: [])
    #expect(throws: APIFailure.self) { try request.checkParameters(of: .console) }
    let good = try APIRequest(method: "GET", target: "/x?takeover&since=a.1&pretty=true", proof: proof, body: [])
    try good.checkParameters(of: .console)
    #expect(try good.flag("takeover") == true)
    #expect(try good.flag("readOnly") == nil)
    #expect(throws: APIFailure.self) {
      try APIRequest(method: "GET", target: "/x?a=%zz", proof: proof, body: [])
    }
  }
}
