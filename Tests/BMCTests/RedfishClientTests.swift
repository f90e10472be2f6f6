import BMC
import JSON
import Logging
import SoftHost
import Testing
import TestBMC
import TestSupport
import WebServer

@Suite struct RedfishClientTests {
  @Test func switchesPowerAndReadsItBack() async throws {
    try await withTestBMC { address, meddler, _ in
      try await withPool { pool in
        let bmc = try pool.client(for: address, credentials: rightCredentials)
        #expect(try await bmc.power() == .off)
        try await bmc.setPower(.on)
        #expect(try await bmc.power() == .on)
        try await bmc.setPower(.gracefulShutdown)
        #expect(try await bmc.power() == .off)
        #expect(try await bmc.confirmOff(readings: 3, interval: .milliseconds(10)))
      }
      // One session for all of it, given back at the end, and the password sent once.
      #expect(meddler.passwordsTried == 1)
      #expect(meddler.requests.last?.method == "DELETE")
    }
  }

  @Test func readsTheInventory() async throws {
    try await withTestBMC { address, _, _ in
      try await withPool { pool in
        let inventory = try await pool.client(for: address, credentials: rightCredentials).inventory()
        #expect(inventory.manufacturer == "YCloud" && inventory.serialNumber == "paper-1")
        #expect(inventory.memoryMiB == 2048 && inventory.cpu.threads == 4)
        #expect(inventory.bmcFirmwareVersion == "1.0.0")
        #expect(inventory.nics == [HardwareInventory.NIC(name: "nic-00-eth0", mac: "02:00:00:00:00:01")])
      }
    }
  }

  @Test func setsTheBootSource() async throws {
    try await withTestBMC { address, _, chassis in
      try await withPool { pool in
        let bmc = try pool.client(for: address, credentials: rightCredentials)
        try await bmc.setBootOverride(BootOverride(source: .network))
        #expect(await chassis.snapshot().boot == BootSetting(enabled: .once, target: .network))
        try await bmc.setBootOverride(BootOverride(source: .none))
        #expect(await chassis.snapshot().boot == BootSetting())
        let refused = await code { try await bmc.setBootOverride(BootOverride(source: .usb)) }
        #expect(refused == .rejected)
      }
    }
  }

  @Test func aChangeBetweenReadingAndWritingIsTriedAgain() async throws {
    try await withTestBMC { address, meddler, chassis in
      try await withPool { pool in
        meddler.meddle { request, next in
          // The first reading is out of date when the write comes.
          var reply = await next(request)
          let reads = meddler.requests.count { $0.method == "GET" && $0.path == "/redfish/v1/Systems/1" }
          if request.method == "GET", reads == 1, reply.headers["ETag"] != nil { reply.headers["ETag"] = "\"old\"" }
          return reply
        }
        let bmc = try pool.client(for: address, credentials: rightCredentials)
        try await bmc.setBootOverride(BootOverride(source: .disk, duration: .continuous))
        #expect(await chassis.snapshot().boot.enabled == .continuous)
      }
      #expect(meddler.requests.count { $0.method == "PATCH" } == 2)
    }
  }

  @Test func renewsASessionThatRanOut() async throws {
    try await withTestBMC(sessionTimeout: .milliseconds(600)) { address, meddler, _ in
      try await withPool { pool in
        let bmc = try pool.client(for: address, credentials: rightCredentials)
        _ = try await bmc.power()
        let before = meddler.passwordsTried
        // The BMC forgets a session that is not used for this long.
        try await Task.sleep(for: .milliseconds(900))
        #expect(try await bmc.power() == .off)
        #expect(meddler.passwordsTried > before)
      }
    }
  }

  @Test func worksWithoutSessions() async throws {
    try await withTestBMC { address, meddler, _ in
      meddler.meddle { request, next in
        if request.path.hasPrefix("/redfish/v1/SessionService") { return RedfishReply(status: 404) }
        return await next(request)
      }
      try await withPool { pool in
        let bmc = try pool.client(for: address, credentials: rightCredentials)
        #expect(try await bmc.power() == .off)
      }
    }
  }

  @Test func worksWhenNoSessionIsFree() async throws {
    try await withTestBMC { address, meddler, _ in
      // Twenty controllers that never signed out; a BMC has room for fewer.
      let pools = (0..<20).map { _ in BMCClientPool(logger: Logger(label: "test")) }
      for pool in pools {
        #expect(try await pool.client(for: address, credentials: rightCredentials).power() == .off)
      }
      #expect(meddler.requests.contains { $0.headers["authorization"] != nil })
      for pool in pools { try await pool.shutdown() }
    }
  }

  @Test func choosesAmongSeveralSystems() async throws {
    try await withTestBMC { address, meddler, _ in
      meddler.meddle { request, next in
        var reply = await next(request)
        if request.path == "/redfish/v1/Systems" {
          reply.body?["Members"] = [
            ["@odata.id": "/redfish/v1/Systems/1"], ["@odata.id": "/redfish/v1/Systems/2"],
          ]
        }
        return reply
      }
      try await withPool { pool in
        let bmc = try pool.client(for: address, credentials: rightCredentials)
        let error = await #expect(throws: BMCError.self) { try await bmc.power() }
        #expect(error?.code == .address)
        #expect(error?.message.contains("/redfish/v1/Systems/2") == true)
        let chosen = try BMCAddress(address.description + "/redfish/v1/Systems/1")
        #expect(try await pool.client(for: chosen, credentials: rightCredentials).power() == .off)
        let absent = try BMCAddress(address.description + "/redfish/v1/Systems/9")
        let missing = await code { try await pool.client(for: absent, credentials: rightCredentials).power() }
        #expect(missing == .address)
      }
    }
  }

  @Test func doesNotFollowToAnotherHost() async throws {
    try await withTestBMC { address, meddler, _ in
      meddler.meddle { _, _ in RedfishReply(status: 302, headers: ["Location": "http://evil.example/redfish/v1/"]) }
      try await withPool { pool in
        let bmc = try pool.client(for: address, credentials: rightCredentials)
        #expect(await code { try await bmc.power() } == .protocolError)
      }
    }
  }

  @Test func anAnswerWithoutEndIsCutOff() async throws {
    try await withTestBMC { address, meddler, _ in
      meddler.meddle { request, next in
        guard request.path == "/redfish/v1/Systems/1" else { return await next(request) }
        return RedfishReply(status: 200, body: ["x": .string(String(repeating: "a", count: 1 << 20))])
      }
      var limits = BMCLimits()
      limits.answerBytes = 1 << 16
      try await withPool(limits) { pool in
        let bmc = try pool.client(for: address, credentials: rightCredentials)
        #expect(await code { try await bmc.power() } == .protocolError)
      }
    }
  }
}
