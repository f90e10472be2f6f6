import BMC
import Glibc
import Testing
import TestSupport

/// A real QEMU in a real chassis. One at a time: each takes a processor.
@Suite(.serialized) struct ServerTests {
  private static let bootLimit = Duration.seconds(60)

  fileprivate func boot(_ server: TestServer, _ bmc: any BMC) async throws -> TestConsole {
    let before = server.starts
    try await bmc.setPower(.on)
    let console = try await eventualValue { try TestConsole(server) }
    try await started(server, before + 1)
    // What hears the power button starts after that.
    try await console.run("until pidof acpid; do usleep 100000; done")
    return console
  }

  private func started(_ server: TestServer, _ count: Int) async throws {
    try await eventually(
      within: ServerTests.bootLimit, "start \(count): \(server.consoleLog.suffix(500)) \(server.output)"
    ) {
      server.starts == count
    }
  }

  @Test func bootsAndGoesOffInEachWay() async throws {
    try await withTestServer { server in
      try await server.addDisk("blk-00-root", source: TinyImage.path())
      try server.start()
      try await server.withBMC { bmc in
        #expect(try await bmc.power() == .off)
        #expect(server.qemu == nil)
        // An override for one boot is spent by it.
        try await bmc.setBootOverride(BootOverride(source: .disk))
        var console = try await boot(server, bmc)
        #expect(try await bmc.power() == .on)
        let etag = try await ChildProcess.run(
          "curl", ["-s", "-u", "admin:correct horse", "http://127.0.0.1:\(server.port)/redfish/v1/Systems/1"])
        #expect(etag.contains(#""BootSourceOverrideEnabled":"Disabled""#))

        // By the guest itself.
        console.type("poweroff -f\n")
        try await eventually(within: .seconds(20)) { try await bmc.power() == .off }
        #expect(server.qemu == nil)

        // By the power button.
        console = try await boot(server, bmc)
        try await bmc.setPower(.gracefulShutdown)
        try await console.expect("power button")
        try await eventually(within: .seconds(20)) { try await bmc.power() == .off }

        // By force; off means that nothing is left.
        console = try await boot(server, bmc)
        let first = server.qemu
        try await bmc.setPower(.forceOff)
        try await eventually(within: .seconds(5)) { try await bmc.power() == .off }
        #expect(server.qemu == nil && first != nil)
        #expect(await refusal { try await bmc.setPower(.forceRestart) } == .rejected)
      }
    }
  }

  @Test func restarts() async throws {
    try await withTestServer { server in
      try await server.addDisk("blk-00-root", source: TinyImage.path())
      try server.start()
      try await server.withBMC { bmc in
        _ = try await boot(server, bmc)
        let first = server.qemu
        try await bmc.setPower(.forceRestart)
        try await started(server, 2)
        #expect(server.qemu == first)
        try await bmc.setPower(.powerCycle)
        try await started(server, 3)
        #expect(server.qemu != first && server.qemu != nil)
        let console = try await eventualValue { try TestConsole(server) }
        try await console.run("until pidof acpid; do usleep 100000; done")
        try await bmc.setPower(.gracefulRestart)
        try await started(server, 4)
        #expect(try await bmc.power() == .on)
      }
    }
  }

  @Test func theDirectoryIsTheBus() async throws {
    try await withTestServer { server in
      try await server.addDisk("blk-00-root", source: TinyImage.path())
      try server.start()
      try await server.withBMC { bmc in
        let console = try await boot(server, bmc)
        func disks() async throws -> String {
          try await console.run("echo disks: $(ls /sys/block) .")
          return console.text.split(whereSeparator: \.isNewline).last { $0.hasPrefix("disks: ") }.map(String.init) ?? ""
        }
        #expect(try await disks().contains("disks: vda ."))
        // While it runs.
        let plug = ContinuousClock.now
        try await server.addDisk("blk-01-data", source: nil)
        try await eventually(within: .seconds(10), every: .milliseconds(100)) {
          try await disks().contains("vda vdb .")
        }
        let unplug = ContinuousClock.now
        server.removeDisk("blk-01-data")
        try await eventually(within: .seconds(10), every: .milliseconds(100)) { try await disks().contains("vda .") }
        print("plugged within \(plug.duration(to: unplug)), unplugged within \(unplug.duration(to: .now))")
        try await eventually { server.output.contains("msg=unplugged function=blk-01-data") }

        // While it is off: the next boot has what is there then.
        try await bmc.setPower(.forceOff)
        try await eventually { try await bmc.power() == .off }
        try await server.addDisk("blk-02-more", source: nil)
        try await server.addDisk("blk-03-more", source: nil)
        try await bmc.setPower(.on)
        try await started(server, 2)
        #expect(try await disks().contains("disks: vda vdb vdc ."))
      }
    }
  }

  /// A data plane that is killed and started again replaces its sockets: nothing may be unplugged, and what the guest
  /// writes meanwhile waits.
  @Test func aBackEndMayRestart() async throws {
    try await withTestServer { server in
      try await server.addDisk("blk-00-root", source: TinyImage.path())
      try await server.addDisk("blk-01-data", source: nil)
      try server.start()
      try await server.withBMC { bmc in
        let console = try await boot(server, bmc)
        server.killBackEnd("blk-01-data")
        unlink(server.bus + "/blk-01-data")
        try server.startBackEnd("blk-01-data")
        try await console.run("dd if=/dev/zero of=/dev/vdb bs=4k count=100 oflag=direct conv=fsync && echo wr\"\"itten")
        #expect(console.text.contains("written"))
        #expect(!server.output.contains("msg=unplugged"))
      }
    }
  }

  @Test func theServerOutlivesItsChassisProcess() async throws {
    try await withTestServer { server in
      try await server.addDisk("blk-00-root", source: TinyImage.path())
      try server.start()
      try await server.withBMC { bmc in
        let console = try await boot(server, bmc)
        try await console.run("MEMORY=kept")
      }
      let first = try #require(server.qemu)
      server.kill()
      // On the bus things change while nobody looks.
      try await server.addDisk("blk-01-late", source: nil)
      try server.start()
      try await server.withBMC { bmc in
        #expect(try await bmc.power() == .on)
        #expect(server.qemu == first)
        let console = try await eventualValue { try TestConsole(server) }
        try await console.run("echo memory $MEMORY")
        #expect(console.text.contains("memory kept"))
        try await eventually(within: .seconds(10), every: .milliseconds(100)) {
          try await console.run("ls /sys/block")
          return console.text.contains("vdb")
        }
        // The first disk was not plugged twice.
        let plugs = server.output.split(separator: "\n").count { $0.contains("msg=plugged function=blk-00-root") }
        #expect(plugs == 1)
      }
      // A graceful stop leaves the server running as well.
      #expect(try await server.terminate() == .code(0))
      #expect(server.qemu == first)
      // It dies while nobody looks: that is told as what it is.
      Glibc.kill(first, SIGKILL)
      try await eventually { server.qemu == nil }
      try server.start()
      try await server.withBMC { bmc in
        // What is left of the process may take a moment.
        try await eventually(within: .seconds(5)) { try await bmc.power() == .off }
        // And while somebody looks.
        _ = try await boot(server, bmc)
        if let pid = server.qemu { Glibc.kill(pid, SIGKILL) }
        try await eventually(within: .seconds(5)) { try await bmc.power() == .off }
      }
    }
  }

  /// A chassis that can open nothing for a while does not take its running server for gone: whoever reads it as off
  /// takes its disks away.
  @Test func aServerStaysOnWhenItsChassisHasNoDescriptorsLeft() async throws {
    try await withTestServer { server in
      try await server.addDisk("blk-00-root", source: TinyImage.path())
      try server.start()
      try await server.withBMC { bmc in
        _ = try await boot(server, bmc)
        let first = try #require(server.qemu)
        let pid = try #require(server.pid)
        try await ChildProcess.run("prlimit", ["--pid", "\(pid)", "--nofile=3:"])
        // A change on the bus makes it look at everything.
        try server.directory.write("bus/change", "")
        try await eventually(within: .seconds(10), server.output) { server.output.contains("the bus cannot be read") }
        try await ChildProcess.run("prlimit", ["--pid", "\(pid)", "--nofile=1024:"])
        #expect(try await bmc.power() == .on)
        #expect(server.qemu == first)
      }
    }
  }

  /// A softhost that is told to end while it switches a server on leaves that to the next one.
  @Test func stoppedInTheMiddleOfPowerOn() async throws {
    try await withTestServer { server in
      try await server.addDisk("blk-00-root", source: TinyImage.path())
      // A card that cannot be plugged holds up the power on for three seconds: `lo` is no tap.
      try server.directory.write("bus/nic-00-x.json", #"{"mac": "02:00:00:00:00:09", "tap": "lo"}"#)
      try server.start()
      try await server.withBMC { bmc in try await bmc.setPower(.on) }
      try await eventually(server.output) {
        server.output.contains("msg=plugged function=blk-00-root") && server.output.contains("bus problem")
      }
      let first = try #require(server.qemu)
      #expect(try await server.terminate() == .code(0))
      #expect(server.qemu == first)
      #expect(!server.output.contains("msg=\"powered on\""), "the power on was over before the end")
      try server.start()
      try await server.withBMC { bmc in
        try await started(server, 1)
        #expect(try await bmc.power() == .on)
        #expect(server.qemu == first)
      }
    }
  }

  @Test func killedInTheMiddleOfPowerOn() async throws {
    try await withTestServer { server in
      try await server.addDisk("blk-00-root", source: TinyImage.path())
      for milliseconds in [0, 10, 30, 60, 100, 150, 250] {
        try server.start()
        try await server.withBMC { bmc in try await bmc.setPower(.on) }
        // Not a wait for a condition: the moment of death is the test.
        try await Task.sleep(for: .milliseconds(milliseconds))
        server.kill()
        try server.start()
        try await server.withBMC { bmc in
          try await eventually(within: .seconds(10), server.output) { [.on, .off].contains(try await bmc.power()) }
          // Whatever was left: it can be switched on and off, and there is one QEMU at most. One that lost its parent
          // while it started may be seen as on until it ends; and a parent is still there for a moment.
          try await eventually(within: .seconds(20), every: .milliseconds(100), server.output) {
            try await bmc.setPower(.on)
            guard try await bmc.power() == .on else { return false }
            return try await server.countQEMUs() == 1
          }
          try await bmc.setPower(.forceOff)
          try await eventually(within: .seconds(10), server.output) { try await bmc.power() == .off }
        }
        server.kill()
      }
      #expect(try await server.countQEMUs() == 0)
    }
  }

  @Test func aFloodOnTheConsoleHoldsUpNobody() async throws {
    try await withTestServer { server in
      try await server.addDisk("blk-00-root", source: TinyImage.path())
      try server.start()
      try await server.withBMC { bmc in
        let console = try await boot(server, bmc)
        // Readers that never read.
        let idle = try (0..<4).map { _ in try TestConsole(server) }
        let start = ContinuousClock.now
        try await console.run("yes 0123456789012345678901234567890123456789 | head -n 20000", within: .seconds(120))
        let seconds = start.duration(to: .now)
        print("800 KB of console output in \(seconds)")
        #expect(try await bmc.power() == .on)
        // They missed some, were told so, and are still there.
        try await console.run("echo after the flood")
        for reader in idle {
          try await eventually(within: .seconds(10)) {
            #expect(reader.read())
            return reader.text.contains("bytes skipped]") && reader.text.contains("after the flood")
          }
        }
      }
    }
  }

  @Test func startsWithUEFI() async throws {
    try await withTestServer { server in
      try await server.addDisk("blk-00-root", source: TinyImage.path())
      try server.start(["--firmware", "uefi", "--memory", "256"])
      try await server.withBMC { bmc in
        _ = try await boot(server, bmc)
        try await bmc.setPower(.forceOff)
        try await eventually { try await bmc.power() == .off }
      }
    }
  }

  @Test func twoCannotHaveOneChassis() async throws {
    try await withTestServer { server in
      try server.start()
      try await server.withBMC { _ in }
      let second = try ChildProcess(
        TestEnvironment.builtProduct("ycloud"),
        [
          "softhost", "--name", "test-1", "--bus-dir", server.bus, "--state-dir", server.directory.file("state"),
          "--bmc-listen", "127.0.0.1:0", "--bmc-credentials-file", server.directory.file("accounts"),
        ])
      #expect(try await second.waitForExit() != .code(0))
      #expect(second.output.contains("another softhost"))
    }
  }

  /// A guest that has halted lets go of nothing: it is asked on, nothing waits for it, and its power can be cut.
  @Test func aGuestMayHoldOnToADisk() async throws {
    try await withTestServer { server in
      try await server.addDisk("blk-00-root", source: TinyImage.path())
      try await server.addDisk("blk-01-data", source: nil)
      try server.start()
      try await server.withBMC { bmc in
        let console = try await boot(server, bmc)
        console.type("halt -f\n")
        try await console.expect("System halted")
        unlink(server.bus + "/blk-01-data")
        try await eventually(within: .seconds(10), server.output) {
          server.output.contains("msg=\"asked the guest to let go\" function=blk-01-data")
        }
        // The bus goes on meanwhile.
        let begin = ContinuousClock.now
        try await server.addDisk("blk-02-more", source: nil)
        try await eventually(within: .seconds(10), server.output) {
          server.output.contains("msg=plugged function=blk-02-more")
        }
        print("plugged beside a guest that holds on within \(begin.duration(to: .now))")
        #expect(!server.output.contains("msg=unplugged function=blk-01-data"))
        #expect(try await bmc.power() == .on)
        try await bmc.setPower(.forceOff)
        try await eventually(within: .seconds(5)) { try await bmc.power() == .off }
      }
    }
  }

  private func refusal(_ body: () async throws -> Void) async -> BMCError.Code? {
    do {
      try await body()
      return nil
    } catch {
      return (error as? BMCError)?.code
    }
  }
}

extension ServerTests {
  /// A card that is plugged while the server runs appears in it, with its address, and goes again.
  @Test func networkCards() async throws {
    try TestEnvironment.requireRoot(for: "a tap device")
    try await withTestServer { server in
      let tap = "yct\(getpid() % 100_000)"
      try await ChildProcess.run("ip", ["tuntap", "add", "dev", tap, "mode", "tap"])
      do {
        try await server.addDisk("blk-00-root", source: TinyImage.path())
        try server.start()
        try await server.withBMC { bmc in
          let console = try await boot(server, bmc)
          try server.directory.write("nic.tmp", #"{"mac": "02:00:00:00:00:07", "tap": "\#(tap)"}"#)
          rename(server.directory.file("nic.tmp"), server.bus + "/nic-00-eth0.json")
          try await eventually(within: .seconds(10), every: .milliseconds(100), server.output) {
            try await console.run("cat /sys/class/net/eth0/address")
            return console.text.contains("02:00:00:00:00:07")
          }
          #expect(try await bmc.inventory().nics.map(\.mac) == ["02:00:00:00:00:07"])
          unlink(server.bus + "/nic-00-eth0.json")
          try await eventually(within: .seconds(10)) { server.output.contains("msg=unplugged function=nic-00-eth0") }
          #expect(try await bmc.inventory().nics.isEmpty)
        }
      } catch {
        server.end()
        try await ChildProcess.run("ip", ["link", "delete", tap])
        throw error
      }
      server.end()
      // The kernel takes the device from a dying process a moment later.
      try await eventually { try await ChildProcess.run("ip", ["link", "delete", tap]).isEmpty }
    }
  }
}
