import Glibc
import JSON
import SoftDPU

/// The state file that a data plane finds when it starts. It may refuse it, and must not break.
final class StateTarget: FuzzTarget {
  private let directory: String

  init() throws {
    directory = try Fixture.makeDirectory()
    Fixture.makeFile("\(directory)/disk", size: 1 << 20)
    mkdir("\(directory)/state", 0o700)
  }

  deinit { Fixture.remove(directory) }

  func run(_ input: [UInt8]) throws {
    let harmless = Harmless(directory: directory)
    let text = harmless.expand(input)
    if let value = try? JSONParser.parse(text) {
      guard harmless.allows(value) else { return }
      // What meets something that is in use is tried for five seconds: not here.
      let calls = (value["subsystems"]?.arrayValue ?? []).reduce(0) { $0 + ($1["config"]?.arrayValue?.count ?? 0) }
      guard calls < 12 else { return }
    }
    Fixture.makeFile("\(directory)/state/softdpu.json", content: text)
    guard let dataPlane = try? Fixture.start(directory, keepsState: true) else { return }
    defer { dataPlane.stop() }
    let control = try ControlChannel("\(directory)/rpc.sock")
    try control.require("bdev_get_bdevs")
    // It can be written down once more.
    _ = try control.call("bdev_null_create", ["name": "fuzz-null", "block_size": 512, "num_blocks": 8])
  }
}
