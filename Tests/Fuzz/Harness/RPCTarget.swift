import Glibc
import JSON
import JSONRPC

/// Calls of SPDK's JSON-RPC, as text: one after the other to a data plane that keeps what they made for a while.
final class RPCTarget: FuzzTarget {
  private var fixture: Fixture
  private var runs = 0
  /// So many inputs meet the same data plane.
  private static let runsPerFixture = 64

  init() throws { fixture = try RPCTarget.prepared() }

  private static func prepared() throws -> Fixture {
    let fixture = try Fixture(keepsState: true)
    Fixture.makeFile("\(fixture.directory)/disk", size: 1 << 20)
    mkdir("\(fixture.directory)/pool", 0o700)
    return fixture
  }

  func run(_ input: [UInt8]) throws {
    let harmless = Harmless(directory: fixture.directory)
    let text = harmless.expand(input)
    var splitter = JSONSplitter()
    splitter.append(text)
    while let value = try? splitter.next() { guard harmless.allows(value) else { return } }
    let wire = try Wire.unix("\(fixture.directory)/rpc.sock")
    try wire.send(text)
    // Another caller is answered; calls are carried out one after the other, so all of the input's have begun then.
    try fixture.control.require("bdev_get_bdevs")
    try fixture.control.require("framework_get_config", ["name": "bdev"])
    wire.endSending()
    wire.wait(for: 1, milliseconds: 1)
    wire.close()
    runs += 1
    if runs % RPCTarget.runsPerFixture == 0 { try renew() }
  }

  /// What was written down is taken again, and everything goes.
  private func renew() throws {
    try fixture.restart()
    try fixture.control.require("bdev_get_bdevs")
    fixture.stop()
    fixture = try RPCTarget.prepared()
  }

  func finish() throws {
    try renew()
    try fixture.end()
  }
}
