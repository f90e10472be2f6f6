import IaaS
import JSON
import Kubernetes
import MachineAPI
import TestSupport
import Testing

/// Clients that take what bm-api has and give nothing back.
@Suite(.timeLimit(.minutes(5)), .serialized) struct AbuseTests {
  /// What is said about a console's session waits for nobody who does not read it.
  @Test func aReaderWhoTakesNothingIsCutOff() async throws {
    let installation = try await Installation.start()
    let result = try await installation.python("notices", path: installation.path("console"))
    #expect((result["turns"]?.intValue ?? 0) >= 40)
    #expect(result["cut"]?.boolValue == true)
    #expect(result["witness"]?.intValue == 1)
  }

  @Test func whoReadsNoAnswersIsNotReadAnyMore() async throws {
    let installation = try await Installation.start()
    let result = try await installation.python("stingy", path: installation.path("timeline"))
    #expect(result["stranger"]?.stringValue?.contains("401") == true)
    #expect(result["stopped"]?.boolValue == true, "\(result)")
    #expect(result["flood"]?.boolValue == true)
    // Others are served meanwhile and afterwards.
    _ = try await installation.client(as: "alice").request(method: "GET", path: installation.path("timeline"))
  }

  /// The front proxy names each group in a header of its own.
  @Test func aUserMayBeInManyGroups() async throws {
    let installation = try await Installation.start()
    let groups = (1...800).map { "group-\($0)" }
    let client = try Installation.makeClient(installation.plane, as: "alice", groups: groups)
    let timeline = try await client.request(method: "GET", path: installation.path("timeline"))
    #expect(timeline["kind"]?.stringValue == "MachineTimeline")
  }
}
