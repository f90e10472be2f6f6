import Dispatch
import Glibc
import JSON
import SoftHost
import Synchronization
import TestSupport
import Testing

@Suite struct QEMUProcessTests {
  @Test func hasEndedOnlyWhenTheKernelSaysSo() async throws {
    let left = try LeftChassis(isOn: true)
    #expect(try QEMUProcess.find(left.configuration) == nil)
    let qemu = try FakeQEMU(left.configuration)
    let process = try #require(try QEMUProcess.find(left.configuration))
    #expect(process.isAlive && process.pid == qemu.process.pid)
    try await process.kill()
    // It is a zombie now, until this test asks how it ended.
    #expect(!process.isAlive && kill(process.pid, 0) == 0)
    #expect(try QEMUProcess.find(left.configuration) == nil)
  }

  @Test func anothersProcessIsNotTaken() throws {
    let left = try LeftChassis(isOn: true)
    for text in ["\(getpid())\n", "", "1\n", "x", "99999999\n", "99999999999999999999\n"] {
      try left.directory.write("state/qemu.pid", text)
      #expect(try QEMUProcess.find(left.configuration) == nil, "\(text)")
    }
  }

  /// Nobody may take a chassis for switched off that only could not look.
  @Test func whatCannotBeReadIsNotGone() throws {
    let left = try LeftChassis(isOn: true)
    try #require(mkdir(left.directory.file("state/qemu.pid"), 0o700) == 0)
    #expect(throws: SoftHostError.self) { try QEMUProcess.find(left.configuration) }
    #expect(throws: SoftHostError.self) { try left.open() }
    #expect(left.record?["power"] == "on")
  }

  @Test func theLimitOfOpenFilesIsRaised() throws {
    let resource = __rlimit_resource_t(RLIMIT_NOFILE.rawValue)
    var before = rlimit()
    try #require(getrlimit(resource, &before) == 0)
    var low = before
    low.rlim_cur = min(before.rlim_cur, before.rlim_max, rlim_t(FileLimit.most)) - 1
    try #require(setrlimit(resource, &low) == 0)
    FileLimit.raise()
    var after = rlimit()
    #expect(getrlimit(resource, &after) == 0)
    #expect(after.rlim_cur == min(before.rlim_max, rlim_t(FileLimit.most)) && after.rlim_max == before.rlim_max)
    // What is higher already stays.
    setrlimit(resource, &before)
    FileLimit.raise()
    #expect(getrlimit(resource, &after) == 0 && after.rlim_cur >= before.rlim_cur)
  }
}

/// A chassis and what it finds when it starts.
@Suite struct AdoptionTests {
  /// What a killed softhost had just forked holds its lock for a moment longer than it.
  @Test func aLockThatIsAboutToBeGivenBackIsWaitedFor() async throws {
    let left = try LeftChassis(isOn: false)
    let path = left.directory.file("state/lock")
    try left.directory.write("state/lock", "")
    let held = open(path, O_RDWR | O_CLOEXEC)
    try #require(held >= 0 && flock(held, LOCK_EX | LOCK_NB) == 0)
    #expect(throws: SoftHostError.self) { try left.open() }
    DispatchQueue.global().asyncAfter(deadline: .now() + .milliseconds(100)) { close(held) }
    _ = try left.open()
  }

  @Test func aServerThatGoesOnIsOnFromTheFirstMoment() async throws {
    let left = try LeftChassis(isOn: true)
    let qemu = try FakeQEMU(left.configuration)
    let chassis = try left.open()
    #expect(await chassis.snapshot().power == .on)
    #expect(qemu.process.isRunning)
  }

  /// A server that was found before its first instruction is let go until it goes.
  @Test func aServerThatDoesNotGoAtOnceIsLetGoAgain() async throws {
    let left = try LeftChassis(isOn: true)
    let refusals = Mutex(2)
    let qemu = try FakeQEMU(left.configuration, status: "prelaunch") { command, reply in
      guard command == "cont", refusals.withLock({ $0 > 0 }) else { return false }
      refusals.withLock { $0 -= 1 }
      reply(FakeQEMU.refused)
      return true
    }
    try await left.withRunning { chassis in
      try await eventually { qemu.commands.count { $0 == "cont" } == 3 }
      #expect(await chassis.snapshot().power == .on)
      // It goes: nobody tells it a fourth time, also not when everything is looked at again.
      let looks = qemu.commands.count
      try await chassis.reset(.nmi)
      try await eventually { qemu.commands.dropFirst(looks).contains("inject-nmi") }
      #expect(qemu.commands.count { $0 == "cont" } == 3)
    }
    #expect(qemu.process.isRunning)
  }

  /// A setting for one boot is spent by the boot that used it, and not by one that was under way when it came.
  @Test func aBootSettingIsSpentByItsOwnBoot() async throws {
    let disk = BootSetting(enabled: .once, target: .disk)
    let network = BootSetting(enabled: .once, target: .network)
    for (later, expected) in [(network, network), (nil, BootSetting())] as [(BootSetting?, BootSetting)] {
      let left = try LeftChassis(isOn: true, boot: disk)
      let opened = Mutex<Chassis?>(nil)
      let isBooted = Mutex(false)
      let qemu = try FakeQEMU(left.configuration, status: "prelaunch") { command, reply in
        guard command == "cont" else { return false }
        Task { @Sendable in
          let chassis = try await eventualValue { opened.withLock { $0 } }
          if let later { try await chassis.setBoot(later) }
          reply(FakeQEMU.done)
          isBooted.withLock { $0 = true }
        }
        return true
      }
      try await left.withRunning { chassis in
        opened.withLock { $0 = chassis }
        try await eventually { isBooted.withLock { $0 } }
        // One more look at everything, so that the boot is over.
        try await chassis.reset(.nmi)
        try await eventually { qemu.commands.contains("inject-nmi") }
        #expect(await chassis.snapshot().boot == expected)
      }
    }
  }

  /// Neither a server that was to be off nor one whose guest has powered off is told as on, and off only when it ended.
  @Test(arguments: [false, true]) func aServerThatShouldBeOffIsEnded(isOn: Bool) async throws {
    let left = try LeftChassis(isOn: isOn)
    // It takes the command to quit, and stays.
    let qemu = try FakeQEMU(left.configuration, status: isOn ? "shutdown" : "running")
    try await left.withRunning { chassis in
      // Where nothing but its monitor knows, that has to be asked first.
      if isOn { try await eventually { await chassis.snapshot().power != .on } }
      try await eventually {
        let power = await chassis.snapshot().power
        #expect(power == .poweringOff || (power == .off && !qemu.process.isRunning))
        return power == .off
      }
      #expect(left.record?["power"] == "off")
    }
  }

  /// A start that was cut short leaves a QEMU without a pid file: off is said when that is gone.
  @Test func aStrayIsEndedBeforeOffIsSaid() async throws {
    let left = try LeftChassis(isOn: true)
    let qemu = try FakeQEMU(left.configuration, hasPIDFile: false)
    try await left.withRunning { chassis in
      try await eventually {
        let wasRunning = qemu.process.isRunning
        let power = await chassis.snapshot().power
        #expect(power == .poweringOff || (power == .off && !qemu.process.isRunning), "\(power) \(wasRunning)")
        return power == .off
      }
    }
    #expect(left.record?["power"] == "off")
  }
}
