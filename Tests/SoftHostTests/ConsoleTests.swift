import SoftHost
import Testing

@Suite struct ConsoleTests {
  @Test func aLateReaderGetsTheEndFromALineOn() {
    var history = ConsoleHistory(limit: 10)
    history.append(Array("abc\n".utf8))
    #expect(history.content == Array("abc\n".utf8))
    history.append(Array("defgh\nijkl".utf8))
    #expect(history.content == Array("ijkl".utf8))
    for _ in 0..<1_000 { history.append(Array("0123456789\n".utf8)) }
    #expect(history.content.count <= 10)
  }

  @Test func aSlowReaderMissesBytesAndIsBroughtUpToDate() {
    var reader = ConsoleReader()
    let chunk = ConsoleReader.outboxMax / 4
    for _ in 0..<4 {
      let isSent = reader.offer(chunk)
      #expect(isSent)
    }
    let over = reader.offer(10)
    let early = reader.sent(chunk)
    // Although there is room now: what is shown must not have holes that nobody tells of.
    let stillOver = reader.offer(5)
    let drained = reader.sent(3 * chunk)
    let after = reader.offer(100)
    #expect(!over && early == nil && !stillOver && drained == 15 && after)
    let nothing = reader.sent(100)
    #expect(nothing == nil)
  }
}

@Suite struct CommandLineTests {
  private func line(
    _ change: (inout ChassisConfiguration) -> Void = { _ in }, _ acceleration: Acceleration = .tcg,
    _ architecture: QEMUCommandLine.Architecture = .x86_64
  ) -> String {
    var configuration = ChassisConfiguration(name: "host-01", busDirectory: "/bus", stateDirectory: "/state")
    change(&configuration)
    let line = QEMUCommandLine(configuration, uuid: "u", acceleration: acceleration, architecture: architecture)
    return ([line.program] + line.arguments).joined(separator: " ")
  }

  @Test func memoryIsShared() {
    #expect(line { $0.memoryMiB = 96 }.contains("memory-backend-memfd,id=ram,size=96M,share=on"))
    // A small guest does not pay for a large cache of translated code.
    #expect(line { $0.memoryMiB = 96 }.contains("tb-size=16"))
  }

  @Test func portsAreEmptyAndOwn() {
    let text = line { $0.ports = 3 }
    #expect(text.contains("id=rp0,") && text.contains("id=rp2,") && !text.contains("id=rp3,"))
    #expect(text.contains("-nodefaults"))
  }

  /// The screen takes a place on the bus that no port takes, however many there are.
  @Test func theScreenIsBehindThePorts() {
    for ports in [1, 24] {
      let text = line { $0.ports = ports }
      #expect(text.contains("-vga none") && text.contains("VGA,id=screen,bus=pcie.0,addr=0x1e"))
      #expect(!text.contains("addr=0x1e,id=rp"))
    }
    #expect(line({ _ in }, .tcg, .aarch64).contains("-device ramfb,id=screen"))
  }

  @Test func eachProcessorHasItsPath() {
    #expect(line { _ in }.hasPrefix("qemu-system-x86_64 "))
    #expect(line({ _ in }, .kvm).contains("-accel kvm -cpu host"))
    let arm = line({ _ in }, .tcg, .aarch64)
    #expect(arm.hasPrefix("qemu-system-aarch64 ") && arm.contains("-machine virt") && arm.contains("AAVMF_CODE"))
    #expect(line { $0.firmware = .uefi }.contains("OVMF_CODE_4M.fd"))
  }

  @Test func kvmIsBelievedOnlyWithVirtualization() {
    #expect(Acceleration.cpuinfoHasVirtualization("processor : 0\nflags\t\t: fpu vmx sse\n"))
    #expect(Acceleration.cpuinfoHasVirtualization("flags : svm"))
    #expect(!Acceleration.cpuinfoHasVirtualization("flags : fpu vmxx\nmodel name : vmx"))
    #expect(!Acceleration.cpuinfoHasVirtualization(""))
  }
}
