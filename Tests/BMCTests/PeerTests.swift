import BMC
import Logging
import Testing
import TestBMC
import TestSupport

/// The Python environment with BMCs and clients written by others, made by scripts/test-venv.sh.
func peerEnvironment() async throws -> String {
  let output = try await ChildProcess.run(
    TestEnvironment.repository + "/scripts/test-venv.sh", [], within: .seconds(300))
  guard let path = output.split(separator: "\n").last else {
    throw TestEnvironmentError("scripts/test-venv.sh printed no path; run it by hand")
  }
  return String(path)
}

/// Against BMCs that others wrote.
@Suite struct PeerTests {
  @Test func sushyTools() async throws {
    let venv = try await peerEnvironment()
    try await withTemporaryDirectory { directory in
      let port = try TestEnvironment.freePort()
      let hash = try await ChildProcess.run(
        venv + "/bin/python3",
        ["-c", "import bcrypt; print(bcrypt.hashpw(b'correct horse', bcrypt.gensalt(4, b'2b')).decode())"])
      let accounts = try directory.write("htpasswd", "admin:" + hash)
      try await ChildProcess.run(
        "openssl",
        [
          "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
          "-keyout", directory.file("key.pem"), "-out", directory.file("cert.pem"), "-subj", "/CN=bmc", "-addext",
          "subjectAltName=IP:127.0.0.1",
        ])
      let system = "27946b59-9e44-4fa7-8e91-f3527a1ef094"
      let configuration = try directory.write(
        "sushy.conf",
        """
        SUSHY_EMULATOR_LISTEN_IP = '127.0.0.1'
        SUSHY_EMULATOR_LISTEN_PORT = \(port)
        SUSHY_EMULATOR_AUTH_FILE = '\(accounts)'
        SUSHY_EMULATOR_SSL_CERT = '\(directory.file("cert.pem"))'
        SUSHY_EMULATOR_SSL_KEY = '\(directory.file("key.pem"))'
        SUSHY_EMULATOR_STATE_DIR = '\(directory.path)'
        SUSHY_EMULATOR_FAKE_DRIVER = True
        SUSHY_EMULATOR_FAKE_SYSTEMS = [{'uuid': '\(system)', 'name': 'fake', 'power_state': 'Off',
          'external_notifier': False, 'nics': [{'mac': '00:5c:52:31:3a:9c', 'ip': '172.22.0.100'}]}]
        """)
      let emulator = try ChildProcess(venv + "/bin/sushy-emulator", ["--config", configuration])
      defer { emulator.kill() }
      let pem = try #require(contentsOfFile(directory.file("cert.pem")))
      try await withPool { pool in
        let address = try BMCAddress("redfish+https://127.0.0.1:\(port)")
        let trust = BMCTrust.authorities(pem: pem)
        let bmc = try pool.client(for: address, credentials: rightCredentials, trust: trust)
        try await eventually(within: .seconds(30), "sushy-emulator: \(emulator.output)") {
          try await bmc.power() == .off
        }
        // It takes up to 11 s to do as told, as servers do.
        try await bmc.setPower(.on)
        try await eventually(within: .seconds(20)) { try await bmc.power() == .on }
        let inventory = try await bmc.inventory()
        #expect(inventory.nics.map(\.mac) == ["00:5c:52:31:3a:9c"])
        #expect(inventory.health == "OK")
        try await bmc.setBootOverride(BootOverride(source: .network))
        // It offers no PowerCycle: off, seen off, on.
        try await bmc.setPower(.powerCycle)
        try await eventually(within: .seconds(20)) { try await bmc.power() == .on }
        let wrong = BMCCredentials(username: "admin", password: "wrong")
        #expect(
          await code { try await pool.client(for: address, credentials: wrong, trust: trust).power() } == .unauthorized)
        let untrusted = await code { try await pool.client(for: address, credentials: rightCredentials).power() }
        #expect(untrusted == .certificate)
      }
    }
  }

  @Test func ipmiSim() async throws {
    _ = try TestEnvironment.requireTool("ipmitool")
    try await withTemporaryDirectory { directory in
      let port = try TestEnvironment.freePort()
      let script = try directory.write(
        "chassis.sh",
        """
        #!/bin/sh
        cd \(directory.path)
        echo "$@" >>log
        shift
        case "$1 $2" in
        "get power") echo "power:$(cat power 2>/dev/null || echo 0)" ;;
        "get boot") echo "boot:default" ;;
        "set power") echo "$3" >power ;;
        "set shutdown") echo 0 >power ;;
        esac
        """, mode: 0o755)
      let lan = try directory.write(
        "lan.conf",
        """
        name "sim"
        set_working_mc 0x20
        startlan 1
          addr 127.0.0.1 \(port)
          priv_limit admin
          allowed_auths_admin none md2 md5 straight
          guid a123456789abcdefa123456789abcdef
        endlan
        chassis_control "\(script) 0x20"
        user 2 true "admin" "correct-horse" admin 10 none md2 md5 straight

        """)
      let emulation = try directory.write(
        "sim.emu",
        """
        mc_setbmc 0x20
        mc_add 0x20 0 no-device-sdrs 0x23 9 8 0x9f 0x1291 0xf02 persist_sdr
        sel_enable 0x20 1000 0x0a
        mc_enable 0x20

        """)
      let simulator = try ChildProcess(
        "ipmi_sim", ["-n", "-c", lan, "-f", emulation, "-s", directory.path, "-p"])
      defer { simulator.kill() }
      try await checkIPMI(port: port) { simulator.output }
      let log = contentsOfFile(directory.file("log")) ?? ""
      #expect(log.contains("set boot pxe"))
    }
  }

  @Test func pyghmi() async throws {
    let venv = try await peerEnvironment()
    try await withTemporaryDirectory { directory in
      let port = try TestEnvironment.freePort()
      let program = try directory.write(
        "bmc.py",
        """
        import pyghmi.cmd.fakebmc as fake
        class Bmc(fake.FakeBmc):
            def power_cycle(self): self.powerstate = 'on'
        Bmc({'admin': 'correct-horse'}, port=\(port)).listen()
        """)
      let simulator = try ChildProcess(venv + "/bin/python3", [program])
      defer { simulator.kill() }
      try await checkIPMI(port: port) { simulator.output }
    }
  }

  private func checkIPMI(port: Int, _ output: @Sendable () -> String) async throws {
    try await withPool { pool in
      let address = try BMCAddress("ipmi://127.0.0.1:\(port)")
      let right = BMCCredentials(username: "admin", password: "correct-horse")
      let bmc = try pool.client(for: address, credentials: right)
      try await eventually(within: .seconds(30), "IPMI: \(output())") { try await bmc.power() == .off }
      try await bmc.setPower(.on)
      #expect(try await bmc.power() == .on)
      try await bmc.setPower(.gracefulShutdown)
      try await eventually { try await bmc.power() == .off }
      #expect(try await bmc.confirmOff(readings: 2, interval: .milliseconds(50)))
      try await bmc.setBootOverride(BootOverride(source: .network))
      let inventory = try await bmc.inventory()
      #expect(inventory.bmcFirmwareVersion != nil)
      #expect(await code { try await bmc.setPower(.gracefulRestart) } == .unsupported)

      let wrong = BMCCredentials(username: "admin", password: "wrong")
      for _ in 0..<3 {
        let start = ContinuousClock.now
        let error = await #expect(throws: BMCError.self) {
          try await pool.client(for: address, credentials: wrong).power()
        }
        #expect(error?.code == .unauthorized, "\(String(describing: error))")
        #expect(start.duration(to: .now) < .seconds(15))
      }
    }
  }

  @Test func silenceOverIPMIIsUnreachable() async throws {
    let port = try TestEnvironment.freePort()
    var limits = BMCLimits()
    limits.connect = .seconds(2)
    try await withPool(limits) { pool in
      let bmc = try pool.client(for: BMCAddress("ipmi://127.0.0.1:\(port)"), credentials: rightCredentials)
      #expect(await code { try await bmc.power() } == .unreachable)
    }
  }

  /// While ipmitool runs, its password is in no argument and no environment.
  @Test func thePasswordIsOnNoCommandLine() async throws {
    let port = try TestEnvironment.freePort()
    let secret = BMCCredentials(username: "admin", password: "s3cr3t-only-here")
    try await withPool { pool in
      let bmc = try pool.client(for: BMCAddress("ipmi://127.0.0.1:\(port)"), credentials: secret)
      async let result = code { try await bmc.power() }
      // It waits some seconds for an answer that does not come.
      let seen = try await eventualValue(within: .seconds(5)) {
        let found = try await ChildProcess.run(
          "sh",
          [
            "-c",
            "for p in $(pgrep -x ipmitool); do tr '\\0' '\\n' </proc/$p/cmdline; tr '\\0' '\\n' </proc/$p/environ; done",
          ])
        return found.contains("-p\n\(port)\n") ? found : nil
      }
      #expect(!seen.contains("s3cr3t"))
      #expect(seen.contains("/dev/stdin"))
      _ = await result
    }
  }
}
