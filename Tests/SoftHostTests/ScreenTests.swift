import BMC
import CLinux
import Glibc
import JSON
import SoftHost
import Synchronization
import TestSupport
import Testing

/// Pictures of the screen: how QEMU is asked for them, and a real one's.
@Suite(.serialized) struct ScreenTests {
  /// A running chassis whose QEMU answers `screendump` in its own way.
  private func withChassis(
    _ onScreendump: @escaping @Sendable (_ file: String, _ reply: @escaping @Sendable (JSONValue) -> Void) -> Void,
    _ body: (Chassis, _ file: String) async throws -> Void
  ) async throws {
    let left = try LeftChassis(isOn: true)
    let file = left.configuration.stateDirectory + "/screen.png"
    let qemu = try FakeQEMU(left.configuration) { command, reply in
      guard command == "screendump" else { return false }
      onScreendump(file, reply)
      return true
    }
    try await left.withRunning { chassis in
      try await eventually { qemu.commands.contains("query-status") }
      // Until its monitor has answered, a picture is asked for again.
      try await eventually {
        do {
          _ = try await chassis.screenshot()
        } catch let error as SoftHostError {
          return error.code != .busy
        }
        return true
      }
      try await body(chassis, file)
    }
  }

  private func write(_ bytes: [UInt8], to file: String) {
    // As QEMU does: it keeps the file that is there.
    let descriptor = open(file, O_WRONLY | O_CREAT | O_TRUNC, 0o666)
    _ = bytes.withUnsafeBytes { Glibc.write(descriptor, $0.baseAddress, $0.count) }
    close(descriptor)
  }

  @Test func thePictureIsNobodyElsesAndDoesNotStay() async throws {
    let mode = Mutex<mode_t>(0)
    try await withChassis { file, reply in
      self.write(Array("pixels".utf8), to: file)
      var status = stat()
      if stat(file, &status) == 0 { mode.withLock { $0 = status.st_mode & 0o777 } }
      reply(FakeQEMU.done)
    } _: { chassis, file in
      let first = try await chassis.screenshot()
      #expect(first == Array("pixels".utf8))
      #expect(mode.withLock { $0 } == 0o600)
      #expect(access(file, F_OK) != 0)
      // What is in the way, by whatever crash, is taken away.
      self.write(Array("old".utf8), to: file)
      let second = try await chassis.screenshot()
      #expect(second == Array("pixels".utf8))
      #expect(access(file, F_OK) != 0)
    }
  }

  @Test func aPictureThatAKilledProcessLeftIsRemoved() throws {
    let left = try LeftChassis(isOn: false)
    let file = try left.directory.write("state/screen.png", "old", mode: 0o600)
    _ = try left.open()
    #expect(access(file, F_OK) != 0)
  }

  @Test func onePictureIsTakenAtATime() async throws {
    let held = Mutex<(@Sendable (JSONValue) -> Void)?>(nil)
    let isHolding = Mutex(false)
    try await withChassis { _, reply in
      guard isHolding.withLock({ $0 }) else { return reply(FakeQEMU.done) }
      held.withLock { $0 = reply }
    } _: { chassis, _ in
      isHolding.withLock { $0 = true }
      async let first = chassis.screenshot()
      let reply = try await eventualValue { held.withLock { $0 } }
      let refused = await #expect(throws: SoftHostError.self) { try await chassis.screenshot() }
      #expect(refused?.code == .busy)
      reply(FakeQEMU.done)
      _ = try await first
      isHolding.withLock { $0 = false }
      _ = try await chassis.screenshot()
    }
  }

  @Test func whatQEMUDoesNotGiveIsToldAndLeavesNothing() async throws {
    let answers = Mutex<[JSONValue]>([
      FakeQEMU.done, FakeQEMU.refused,
      ["error": ["class": "GenericError", "desc": "There is no console to take a screendump from"]],
    ])
    let isLarge = Mutex(false)
    try await withChassis { file, reply in
      if isLarge.withLock({ $0 }) { truncate(file, off_t(Chassis.pictureMax + 1)) }
      reply(answers.withLock { $0.isEmpty ? FakeQEMU.done : $0.removeFirst() })
    } _: { chassis, file in
      #expect(await #expect(throws: SoftHostError.self) { try await chassis.screenshot() }?.code == .refused)
      let old = await #expect(throws: SoftHostError.self) { try await chassis.screenshot() }
      #expect(old?.code == .conflict && old?.message.contains("power cycle") == true)
      isLarge.withLock { $0 = true }
      let large = await #expect(throws: SoftHostError.self) { try await chassis.screenshot() }
      #expect(large?.code == .file && large?.message.contains("longer than") == true)
      #expect(access(file, F_OK) != 0)
      try await chassis.reset(.forceOff)
      #expect(await #expect(throws: SoftHostError.self) { try await chassis.screenshot() }?.code == .conflict)
    }
  }

  /// Over Redfish, of a real QEMU: what the firmware writes is on the screen, also without a disk.
  @Test(arguments: ["bios", "uefi"]) func theFirmwareCanBeSeen(firmware: String) async throws {
    try await withTestServer { server in
      try server.start(["--firmware", firmware, "--memory", firmware == "uefi" ? "256" : "96"])
      try await server.withBMC { bmc in
        let off = await #expect(throws: BMCError.self) { try await bmc.screenshot() }
        #expect(off?.code == .rejected && off?.isStateRefusal == true)
        try await bmc.setPower(.on)
        let file = server.directory.file("picture.png")
        try await eventually(within: .seconds(60), every: .milliseconds(500), "something is on the screen") {
          let picture: ScreenPicture
          do {
            picture = try await bmc.screenshot()
          } catch let error as BMCError {
            // While it is being switched on.
            guard error.code == .busy || error.isStateRefusal else { throw error }
            return false
          }
          #expect((300...1080).contains(picture.height) && (600...1920).contains(picture.width))
          self.write(picture.png, to: file)
          return try await ChildProcess.run("python3", ["-c", Self.countColours, file]) != "1\n"
        }
        #expect(access(server.directory.file("state/screen.png"), F_OK) != 0)
        try await bmc.setPower(.forceOff)
        try await eventually(within: .seconds(10)) { try await bmc.power() == .off }
      }
    }
  }

  /// Somebody else's reading of the picture: how many colours it has, each line with its filter undone.
  private static let countColours = """
    import struct, sys, zlib
    data = open(sys.argv[1], "rb").read()
    place, body = 8, b""
    while place < len(data):
        length, = struct.unpack(">I", data[place:place + 4])
        name, content = data[place + 4:place + 8], data[place + 8:place + 8 + length]
        assert zlib.crc32(name + content) == struct.unpack(">I", data[place + 8 + length:place + 12 + length])[0]
        if name == b"IHDR":
            width, height, depth, kind = struct.unpack(">IIBB", content[:10])
        if name == b"IDAT":
            body += content
        place += 12 + length
    assert depth == 8 and kind in (2, 6)
    size = 3 if kind == 2 else 4
    raw, stride, colours = zlib.decompress(body), width * size, set()
    assert len(raw) == height * (stride + 1)
    before = bytearray(stride)
    for row in range(height):
        kind, line = raw[row * (stride + 1)], bytearray(raw[row * (stride + 1) + 1:(row + 1) * (stride + 1)])
        if kind:
            for i in range(stride):
                a, b, c = (line[i - size] if i >= size else 0), before[i], (before[i - size] if i >= size else 0)
                p = a + b - c
                near = min((abs(p - a), 0, a), (abs(p - b), 1, b), (abs(p - c), 2, c))[2]
                line[i] = line[i] + (0, a, b, (a + b) // 2, near)[kind] & 255
        before = line
        colours.update(bytes(line[i:i + size]) for i in range(0, stride, size))
    print(len(colours))
    """
}
