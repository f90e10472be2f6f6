import BMC
import IaaS
import JSON
import Kubernetes
import MachineAPI
import Synchronization
import TestSupport
import Testing

/// The smallest PNG that has a head and an end.
private let picture: [UInt8] =
  ScreenPicture.signature + [0, 0, 0, 13] + Array("IHDR".utf8) + [0, 0, 2, 208, 0, 0, 1, 144, 8, 2, 0, 0, 0]
  + [0, 0, 0, 0] + [0, 0, 0, 0] + Array("IEND".utf8) + [0, 0, 0, 0]

@Suite struct ScreenshotVerbTests {
  private let key = ObjectKey(namespace: "team", name: "bm-01")

  private func subject(
    holder: String? = "u", bootedAt: MicroTimestamp? = .now(), accountIsCurrent: Bool? = nil
  ) throws(APIFailure) -> ScreenshotVerb.Subject {
    var machine = BareMetalMachine(metadata: ObjectMeta(name: "bm-01", namespace: "team"), spec: .init(disks: []))
    machine.metadata.uid = "u"
    machine.status = .init()
    machine.status?.bootedAt = bootedAt
    machine.status?.message = "stopped by its spec"
    var host = BareMetalHost(
      metadata: ObjectMeta(name: "host-01"),
      spec: .init(
        bmc: .init(address: "redfish://10.9.8.7", credentialsSecretRef: .init(name: "b")), dpu: .init(node: "d")))
    host.status = .init()
    if let holder { host.status?.claim = .init(namespace: "team", name: "bm-01", uid: holder) }
    if let accountIsCurrent {
      host.status?.conditions = [
        Condition(
          type: BareMetalHost.ConditionType.credentials, status: .init(accountIsCurrent), reason: "X", message: "x",
          lastTransitionTime: .now())
      ]
    }
    return try ScreenshotVerb.subject(machine, on: host)
  }

  @Test func onlyTheMachinesOwnScreenIsShown() throws {
    let now = MicroTimestamp.now()
    #expect(try subject(bootedAt: now) == subject(bootedAt: now, accountIsCurrent: true))
    for holder in [nil, "another"] {
      #expect(#expect(throws: APIFailure.self) { try subject(holder: holder) }?.code == 409)
    }
    let off = #expect(throws: APIFailure.self) { try subject(bootedAt: nil) }
    #expect(off?.code == 409 && off?.message.contains("stopped by its spec") == true)
    // A refused account is not tried once more.
    #expect(#expect(throws: APIFailure.self) { try subject(accountIsCurrent: false) }?.code == 503)
    // Another boot, another picture.
    #expect(try subject(bootedAt: now) != subject(bootedAt: MicroTimestamp("2026-01-01T00:00:00.000000Z")))
  }

  @Test(arguments: [
    (BMCError.Code.unsupported, 501), (.busy, 429), (.timeout, 504), (.unreachable, 503), (.unauthorized, 503),
    (.lockedOut, 503), (.forbidden, 503), (.certificate, 503), (.address, 503), (.local, 503), (.protocolError, 500),
    (.rejected, 500), (.failed, 500),
  ]) func aFailureSaysWhatToDoAndNothingOfTheBMC(code: BMCError.Code, status: Int) {
    let error = BMCError(
      code, operation: "take a picture of redfish+https://10.9.8.7:443", message: "no answer from 10.9.8.7 for root")
    let failure = ScreenshotVerb.failure(error, machine: key, host: "host-01")
    #expect(failure.code == status)
    #expect(failure.machine == "bm-01" && failure.message.contains("host-01"))
    #expect(!failure.message.contains("10.9.8.7") && !failure.message.contains("root"))
    #expect((failure.retryAfterSeconds != nil) == (code == .busy))
    if status == 501 { #expect(failure.message.contains("bmctl console bm-01")) }
  }

  @Test func offIsAConflict() {
    let error = BMCError(.rejected, operation: "x", message: "y", isStateRefusal: true)
    #expect(ScreenshotVerb.failure(error, machine: key, host: "host-01").code == 409)
    #expect(ScreenshotVerb.failure(CancellationError(), machine: key, host: "host-01").code == 503)
  }
}

@Suite struct ScreenshotDeskTests {
  private func desk(_ limits: ScreenshotLimits, _ take: @escaping ScreenCamera.Take) -> ScreenshotDesk {
    ScreenshotDesk(camera: ScreenCamera(take), limits: limits)
  }

  @Test func placesAreFewAndComeBack() throws {
    var limits = ScreenshotLimits()
    limits.total = 3
    limits.perUser = 2
    let desk = desk(limits) { _ in try ScreenPicture(png: picture) }
    func refusal(_ user: String, _ host: String) -> Int? {
      do throws(APIFailure) {
        _ = try desk.enter(user: user, host: host, machine: "m")
        return nil
      } catch {
        #expect(error.retryAfterSeconds == 1)
        return error.code
      }
    }
    var first: ScreenshotPermit? = try desk.enter(user: "alice", host: "h1", machine: "m")
    #expect(refusal("bob", "h1") == 429)
    let second = try desk.enter(user: "alice", host: "h2", machine: "m")
    #expect(refusal("alice", "h3") == 429)
    let third = try desk.enter(user: "bob", host: "h3", machine: "m")
    #expect(refusal("carol", "h4") == 429)
    withExtendedLifetime(first) {}
    first = nil
    #expect(refusal("carol", "h1") == nil)
    #expect(refusal("alice", "h1") == nil)
    withExtendedLifetime((second, third)) {}
  }

  /// Who leaves does not end the taking, and who stops it answers everybody.
  @Test func whatIsBegunIsFinished() async throws {
    let host = BareMetalHost(
      metadata: ObjectMeta(name: "h"),
      spec: .init(bmc: .init(address: "x", credentialsSecretRef: .init(name: "b")), dpu: .init(node: "d")))
    let begun = Mutex(0)
    let wasCancelled = Mutex(false)
    let (gate, open) = AsyncStream.makeStream(of: Void.self)
    let desk = desk(ScreenshotLimits()) { _ in
      begun.withLock { $0 += 1 }
      for await _ in gate { break }
      if Task.isCancelled { wasCancelled.withLock { $0 = true } }
      try Task.checkCancellation()
      return try ScreenPicture(png: picture)
    }
    let running = Task { await desk.run() }
    let asking = Task { try await desk.picture(of: host) }
    try await eventually { begun.withLock { $0 } == 1 }
    asking.cancel()
    open.yield()
    #expect(try await asking.value.width == 720)
    #expect(!wasCancelled.withLock { $0 })
    // The end.
    let last = Task { try await desk.picture(of: host) }
    try await eventually { begun.withLock { $0 } == 2 }
    running.cancel()
    await running.value
    await #expect(throws: CancellationError.self) { try await last.value }
    await #expect(throws: CancellationError.self) { try await desk.picture(of: host) }
  }
}

/// Through kube-apiserver's aggregation.
@Suite(.timeLimit(.minutes(5)), .serialized) struct ScreenshotServerTests {
  @Test func aPictureIsForThoseWhoMayType() async throws {
    let problem = Mutex<BMCError?>(nil)
    let installation = try await Installation.start { configuration in
      configuration.camera = ScreenCamera { host in
        if let error = problem.withLock({ $0 }) { throw error }
        #expect(host.metadata.name == "host-01")
        return try ScreenPicture(png: picture)
      }
    }
    let path = installation.path("screenshot")
    let alice = try installation.client(as: "alice")
    #expect(try await alice.content(path: path, limit: 1 << 20) == picture)
    func failure(_ client: KubernetesClient) async throws -> KubernetesError {
      let error = await #expect(throws: KubernetesError.self) { try await client.content(path: path, limit: 1 << 20) }
      return try #require(error)
    }
    for user in ["bob", "mallory"] {
      #expect(try await failure(try installation.client(as: user)).code == .forbidden)
    }
    // As it goes over the wire.
    let head = try await ChildProcess.run(
      "curl",
      [
        "-s", "-D", "-", "-o", "/dev/null", "--cacert", installation.plane.certificateAuthority, "-m", "20", "-H",
        "Authorization: Bearer \(TestControlPlane.adminToken)", installation.plane.server + path,
      ]
    ).lowercased()
    #expect(head.contains("content-type: image/png") && head.contains("cache-control: no-store"))
    #expect(head.contains("nosniff"))

    problem.withLock { $0 = BMCError(.unsupported, operation: "x", message: "y") }
    let unable = try await failure(alice)
    #expect(unable.httpStatus == 501 && unable.message.contains("bmctl console bm-01"))
    #expect(unable.status?.details?.name == "bm-01")
    problem.withLock { $0 = nil }

    // A machine that is off, then one that has no host.
    for status: JSONValue in [["bootedAt": nil], ["host": nil]] {
      _ = try await installation.client.mergePatch(
        BareMetalMachine.self, name: Installation.machine, namespace: installation.namespace,
        patch: ["status": status], subresource: "status")
      #expect(try await failure(alice).code == .conflict)
    }
    let list = try await installation.plane.kubectl("get", "--raw", "/apis/\(Names.subresourceGroup)/v1")
    #expect(list.contains("baremetalmachines/screenshot"))
  }

  /// The account is read from the host's Secret with the rights that bm-api has already; without `--screenshots` no BMC is
  /// talked to.
  @Test func bmcsAreAskedOnlyWhereTheOperatorSaysSo() async throws {
    let installation = try await Installation.start()
    let alice = try installation.client(as: "alice")
    let error = await #expect(throws: KubernetesError.self) {
      try await alice.content(path: installation.path("screenshot"), limit: 1 << 20)
    }
    #expect(error?.httpStatus == 501 && error?.message.contains("--screenshots") == true)
  }
}
