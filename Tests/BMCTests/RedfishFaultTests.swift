import BMC
import JSON
import Logging
import SoftHost
import Synchronization
import Testing
import TestBMC
import TestSupport
import WebServer

/// What BMCs do wrong, as users report it.
@Suite struct RedfishFaultTests {
  /// That it is off already proves that the BMC took the command to go off; a bare refusal, or one because something else
  /// is under way, does not.
  @Test(arguments: [
    (409, "Base.1.18.InvalidOperationForSystemState", "", true), (400, "", "Server is already powered OFF.", true),
    (400, "Base.1.18.ActionParameterNotSupported", "ResetType is not known.", false), (400, "", "", false),
    (409, "Base.1.18.OperationFailed", "too many changes of power wait already", false),
    (404, "Base.1.18.InvalidOperationForSystemState", "", false),
  ])
  func aRefusalBecauseOfTheStateIsTold(_ status: Int, _ id: String, _ text: String, _ isStateRefusal: Bool) async throws
  {
    try await withTestBMC { address, meddler, _ in
      meddler.meddle { request, next in
        guard request.method == "POST", request.path.hasSuffix("ComputerSystem.Reset") else {
          return await next(request)
        }
        let message: JSONValue = ["MessageId": .string(id), "Message": .string(text)]
        return RedfishReply(status: status, body: ["error": ["@Message.ExtendedInfo": [message]]])
      }
      try await withPool { pool in
        let bmc = try pool.client(for: address, credentials: rightCredentials)
        let error = await #expect(throws: BMCError.self) { try await bmc.setPower(.forceOff) }
        #expect(error?.code == .rejected)
        #expect(error?.isStateRefusal == isStateRefusal)
      }
    }
  }

  @Test func aClientThatIsNotNeededEndsItsSession() async throws {
    try await withTestBMC { address, meddler, _ in
      try await withPool { pool in
        _ = try await pool.client(for: address, credentials: rightCredentials).power()
        await pool.remove(address)
        #expect(meddler.requests.count { $0.method == "DELETE" && $0.path.contains("/Sessions/") } == 1)
      }
    }
  }

  @Test func aWrongPasswordIsTriedOnce() async throws {
    try await withTestBMC { address, meddler, _ in
      try await withPool { pool in
        let wrong = BMCCredentials(username: "admin", password: "wrong")
        for _ in 0..<10 {
          let bmc = try pool.client(for: address, credentials: wrong)
          let error = await #expect(throws: BMCError.self) { try await bmc.power() }
          #expect(error?.code == .unauthorized)
          #expect(error?.description.contains("wrong") == false)
          #expect(error?.retryAfter != nil)
        }
        // Also not by another client, nor by several at a time.
        let other = try BMCAddress(address.description + "/redfish/v1/Systems/1")
        await withTaskGroup(of: BMCError.Code?.self) { group in
          for _ in 0..<8 {
            group.addTask { await code { try await pool.client(for: other, credentials: wrong).power() } }
          }
          for await result in group { #expect(result == .unauthorized) }
        }
        #expect(meddler.passwordsTried == 1)
        // Corrected credentials count at once.
        #expect(try await pool.client(for: address, credentials: rightCredentials).power() == .off)
      }
    }
  }

  @Test func aWrongPasswordWithBasicIsTriedOnce() async throws {
    try await withTestBMC { address, meddler, _ in
      meddler.meddle { request, next in
        var reply = await next(request)
        if request.path == "/redfish/v1" {
          reply.body?["Links"] = nil
          reply.body?["SessionService"] = nil
        }
        return reply
      }
      try await withPool { pool in
        let wrong = BMCCredentials(username: "admin", password: "wrong")
        for _ in 0..<5 {
          #expect(await code { try await pool.client(for: address, credentials: wrong).power() } == .unauthorized)
        }
        #expect(meddler.passwordsTried == 1, "\(meddler.requests.map { "\($0.method) \($0.path) \($0.headers.keys)" })")
      }
    }
  }

  @Test func aLockedAccountIsToldAndLeftAlone() async throws {
    try await withTestBMC { address, meddler, _ in
      for _ in 0..<6 {
        try await withPool { pool in
          let wrong = BMCCredentials(username: "admin", password: "wrong")
          _ = await code { try await pool.client(for: address, credentials: wrong).power() }
        }
      }
      let before = meddler.passwordsTried
      try await withPool { pool in
        for _ in 0..<3 {
          #expect(
            await code { try await pool.client(for: address, credentials: rightCredentials).power() } == .lockedOut)
        }
      }
      #expect(meddler.passwordsTried == before + 1)
    }
  }

  @Test func nobodyThere() async throws {
    let port = try TestEnvironment.freePort()
    try await withPool { pool in
      let bmc = try pool.client(for: BMCAddress("redfish+http://127.0.0.1:\(port)"), credentials: rightCredentials)
      let start = ContinuousClock.now
      #expect(await code { try await bmc.power() } == .unreachable)
      #expect(start.duration(to: .now) < .seconds(5))
    }
  }

  @Test func aSlowBMCIsWaitedForAndADeadOneIsNot() async throws {
    try await withTestBMC { address, meddler, _ in
      meddler.meddle { request, next in
        try? await Task.sleep(for: .milliseconds(300))
        return await next(request)
      }
      try await withPool { pool in
        let bmc = try pool.client(for: address, credentials: rightCredentials)
        #expect(try await bmc.power() == .off)
      }
      var limits = BMCLimits()
      limits.request = .milliseconds(100)
      try await withPool(limits) { pool in
        let bmc = try pool.client(for: address, credentials: rightCredentials)
        #expect(await code { try await bmc.power() } == .timeout)
      }
      // What was reached before a call's time was over is kept: the next call gets further.
      limits = BMCLimits()
      limits.call = .milliseconds(700)
      try await withPool(limits) { pool in
        let bmc = try pool.client(for: address, credentials: rightCredentials)
        try await eventually(within: .seconds(10)) { try await bmc.power() == .off }
      }
    }
  }

  @Test func tenSecondsForEachAnswer() async throws {
    try await withTestBMC { address, meddler, _ in
      try await withPool { pool in
        let bmc = try pool.client(for: address, credentials: rightCredentials)
        _ = try await bmc.power()
        meddler.meddle { request, next in
          try? await Task.sleep(for: .seconds(10))
          return await next(request)
        }
        #expect(try await bmc.power() == .off)
      }
    }
  }

  @Test func aLieAboutPowerIsNotBelieved() async throws {
    try await withTestBMC { address, meddler, chassis in
      try await chassis.reset(.on)
      // Off is told for half a second from the first reading on, although the server is on.
      let firstReading = Mutex<ContinuousClock.Instant?>(nil)
      meddler.changeSystem { body in
        let first = firstReading.withLock { first in
          if first == nil { first = .now }
          return first ?? .now
        }
        if first.duration(to: .now) < .milliseconds(500) { body["PowerState"] = "Off" }
      }
      try await withPool { pool in
        let bmc = try pool.client(for: address, credentials: rightCredentials)
        #expect(try await bmc.power() == .off)
        #expect(try await !bmc.confirmOff(readings: 3, interval: .milliseconds(300)))
      }
    }
  }

  @Test func nullsEverywhere() async throws {
    try await withTestBMC { address, meddler, _ in
      meddler.changeSystem { body in
        for name in (body.objectValue ?? [:]).keys where !name.hasPrefix("@") { body[name] = .some(.null) }
      }
      try await withPool { pool in
        let bmc = try pool.client(for: address, credentials: rightCredentials)
        #expect(try await bmc.power() == .unknown)
        let inventory = try await bmc.inventory()
        #expect(inventory.manufacturer == nil && inventory.nics.isEmpty)
        // Without any action named, the standard's own path is used.
        try await bmc.setPower(.on)
      }
    }
  }

  @Test(arguments: [503, 429])
  func aBusyBMCTellsWhenToComeBack(_ status: Int) async throws {
    try await withTestBMC { address, meddler, _ in
      meddler.meddle { _, _ in RedfishReply(status: status, headers: ["Retry-After": "7"]) }
      try await withPool { pool in
        let bmc = try pool.client(for: address, credentials: rightCredentials)
        let error = await #expect(throws: BMCError.self) { try await bmc.power() }
        #expect(error?.code == .busy && error?.retryAfter == .seconds(7) && error?.isTransient == true)
        meddler.meddle(nil)
        #expect(try await bmc.power() == .off)
      }
    }
  }

  @Test func garbageIsAnError() async throws {
    try await withTestBMC { address, meddler, _ in
      meddler.meddle { _, _ in RedfishReply(status: 200, body: ["not", "an", "object"]) }
      try await withPool { pool in
        let bmc = try pool.client(for: address, credentials: rightCredentials)
        #expect(await code { try await bmc.power() } == .protocolError)
      }
    }
  }

  @Test func aPasswordThatABMCEchoesIsHidden() async throws {
    try await withTestBMC { address, meddler, _ in
      meddler.meddle { request, next in
        guard request.method == "POST", request.path.hasSuffix("Reset") else { return await next(request) }
        return RedfishReply(status: 400, body: ["error": ["message": "bad: correct horse", "code": "x"]])
      }
      try await withPool { pool in
        let bmc = try pool.client(for: address, credentials: rightCredentials)
        let error = await #expect(throws: BMCError.self) { try await bmc.setPower(.on) }
        #expect(error?.description.contains("correct horse") == false)
        #expect(error?.description.contains("<redacted>") == true)
      }
    }
  }

  @Test func oneRequestAtATime() async throws {
    try await withTestBMC { address, meddler, _ in
      let running = Atomic(0)
      let most = Atomic(0)
      meddler.meddle { request, next in
        let now = running.add(1, ordering: .sequentiallyConsistent).newValue
        most.max(now, ordering: .sequentiallyConsistent)
        try? await Task.sleep(for: .milliseconds(5))
        running.subtract(1, ordering: .sequentiallyConsistent)
        return await next(request)
      }
      try await withPool { pool in
        let bmc = try pool.client(for: address, credentials: rightCredentials)
        await withTaskGroup(of: BMCError.Code?.self) { group in
          for _ in 0..<12 { group.addTask { await code { try await bmc.power() } } }
          for await result in group { #expect(result == nil) }
        }
      }
      #expect(most.load(ordering: .sequentiallyConsistent) == 1)
    }
  }

  @Test func certificates() async throws {
    try await withTemporaryDirectory { directory in
      func make(_ name: String, host: String) async throws -> TLSFiles {
        let files = TLSFiles(
          certificateChain: directory.file(name + ".pem"), privateKey: directory.file(name + ".key"))
        try await ChildProcess.run(
          "openssl",
          [
            "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
            "-keyout", files.privateKey, "-out", files.certificateChain, "-subj", "/CN=" + name, "-addext",
            "subjectAltName=" + host,
          ])
        return files
      }
      let good = try await make("good", host: "IP:127.0.0.1")
      let elsewhere = try await make("elsewhere", host: "DNS:bmc.example")
      let pem = try #require(contentsOfFile(good.certificateChain))
      let otherPEM = try #require(contentsOfFile(elsewhere.certificateChain))
      try await withTestBMC(tls: good) { address, meddler, _ in
        for (trust, expected) in [
          (BMCTrust.authorities(pem: pem), nil), (.insecureSkipVerify, nil), (.systemRoots, BMCError.Code.certificate),
          (.authorities(pem: otherPEM), .certificate),
        ] {
          try await withPool { pool in
            let bmc = try pool.client(for: address, credentials: rightCredentials, trust: trust)
            let result = await code { try await bmc.power() }
            #expect(result == expected)
          }
        }
        // Nothing was told to a BMC that was not trusted.
        #expect(meddler.passwordsTried == 2)
      }
      try await withTestBMC(tls: elsewhere) { address, _, _ in
        try await withPool { pool in
          let bmc = try pool.client(for: address, credentials: rightCredentials, trust: .authorities(pem: otherPEM))
          #expect(await code { try await bmc.power() } == .certificate)
        }
      }
      try await withPool { pool in
        let address = try BMCAddress("redfish+https://127.0.0.1")
        let error = #expect(throws: BMCError.self) {
          try pool.client(for: address, credentials: rightCredentials, trust: .authorities(pem: "nonsense"))
        }
        #expect(error?.code == .certificate)
      }
    }
  }
}
