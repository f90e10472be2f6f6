import Glibc
import JSON

/// The description of a store of volumes on disk, and everything that is done with the volumes it names.
final class LvolTarget: FuzzTarget {
  private let fixture: Fixture
  private var pool: String { "\(fixture.directory)/pool" }
  static let uuids = [
    "11111111-1111-4111-8111-111111111111", "22222222-2222-4222-8222-222222222222",
    "33333333-3333-4333-8333-333333333333",
  ]

  init() throws {
    fixture = try Fixture()
    mkdir("\(fixture.directory)/pool", 0o700)
  }

  func run(_ input: [UInt8]) throws {
    Fixture.remove("\(pool)/lvols")
    mkdir("\(pool)/lvols", 0o700)
    for uuid in LvolTarget.uuids { Fixture.makeFile("\(pool)/lvols/\(uuid).img", size: 65536) }
    Fixture.makeFile("\(pool)/lvstore.json", content: input)
    let control = fixture.control
    guard case .success = try control.call("bdev_aio_create", ["name": "pool", "filename": .string(pool)]) else {
      return
    }
    try control.require("bdev_lvol_get_lvstores")
    try control.require("bdev_get_bdevs")
    let lvols = try control.require("bdev_lvol_get_lvols").arrayValue ?? []
    for lvol in lvols.prefix(6) {
      guard let uuid = lvol["uuid"] else { throw FuzzFailure("a volume without a UUID: \(lvol.text.prefix(300))") }
      _ = try control.call("bdev_lvol_snapshot", ["lvol_name": uuid, "snapshot_name": "s"])
      _ = try control.call("bdev_lvol_clone", ["snapshot_name": uuid, "clone_name": "c"])
      _ = try control.call("bdev_lvol_resize", ["name": uuid, "size_in_mib": 1])
      _ = try control.call("bdev_lvol_decouple_parent", ["name": uuid])
      _ = try control.call("bdev_lvol_delete", ["name": uuid])
    }
    try control.require("bdev_lvol_get_lvols")
    try control.require("bdev_aio_delete", ["name": "pool"])
    // Whatever is written down is read again.
    _ = try control.call("bdev_aio_create", ["name": "pool", "filename": .string(pool)])
    _ = try control.call("bdev_aio_delete", ["name": "pool"])
    guard try control.require("bdev_get_bdevs") == [] else {
      throw FuzzFailure("something is left of a store whose folder is gone")
    }
  }

  func finish() throws { try fixture.end() }
}
