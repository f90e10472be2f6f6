import BMC
import SoftHost
import Testing
import TestBMC
import TestSupport

/// Clients that others wrote, against our BMC.
@Suite struct OtherClientsTests {
  @Test func sushyLibrary() async throws {
    let venv = try await peerEnvironment()
    try await withTestBMC { address, _, chassis in
      let output = try await ChildProcess.run(
        venv + "/bin/python3",
        [
          "-c",
          """
          import sushy, sys
          from sushy.resources.system import constants as c
          root = sushy.Sushy(sys.argv[1], auth=sushy.auth.SessionAuth('admin', 'correct horse'), verify=False)
          system = root.get_system_collection().get_members()[0]
          print('power', system.power_state.value, system.manufacturer, system.memory_summary.size_gib)
          print('cpus', system.processors.summary.count, 'nics', system.ethernet_interfaces.summary)
          system.reset_system(sushy.ResetType.ON)
          system.refresh(force=True)
          print('then', system.power_state.value)
          system.set_system_boot_options(sushy.BootSource.PXE, enabled=sushy.BootSourceOverrideEnabled.ONCE)
          system.refresh(force=True)
          print('boot', system.boot.target.value, system.boot.enabled.value)
          print('manager', system.managers[0].firmware_version, 'chassis', system.chassis[0].chassis_type.value)
          system.reset_system(sushy.ResetType.FORCE_OFF)
          """, address.endpoint.replacing("redfish+", with: ""),
        ], within: .seconds(60))
      #expect(output.contains("power Off YCloud 2"), "\(output)")
      #expect(output.contains("02:00:00:00:00:01"))
      #expect(output.contains("then On"))
      #expect(output.contains("boot Pxe Once"))
      #expect(output.contains("manager 1.0.0"))
      #expect(await chassis.snapshot().power == .off)
    }
  }

  @Test func dmtfLibrary() async throws {
    let venv = try await peerEnvironment()
    try await withTestBMC { address, meddler, chassis in
      let output = try await ChildProcess.run(
        venv + "/bin/python3",
        [
          "-c",
          """
          import redfish, sys
          for auth in ('session', 'basic'):
              client = redfish.redfish_client(base_url=sys.argv[1], username='admin', password='correct horse')
              client.login(auth=auth)
              system = client.get('/redfish/v1/Systems/1')
              print(auth, system.status, system.dict['PowerState'])
              target = system.dict['Actions']['#ComputerSystem.Reset']['target']
              print('reset', client.post(target, body={'ResetType': 'On'}).status)
              print('stale', client.patch('/redfish/v1/Systems/1', body={'Boot': {}}, headers={'If-Match': '"x"'}).status)
              client.logout()
          """, address.endpoint.replacing("redfish+", with: ""),
        ], within: .seconds(60))
      #expect(output.contains("session 200 Off"), "\(output)")
      #expect(output.contains("basic 200 On"))
      #expect(output.contains("reset 204"))
      #expect(output.contains("stale 412"))
      #expect(meddler.requests.contains { $0.method == "DELETE" })
    }
  }
}
