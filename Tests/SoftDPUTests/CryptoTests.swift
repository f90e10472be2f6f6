import Glibc
import JSON
import JSONRPC
import SoftDPU
import TestSupport
import Testing

@Suite struct CryptoTests {
  private static let key = "27182818284590452353602874713526"
  private static let tweak = "31415926535897932384626433832795"

  private func encrypted(_ target: Target) async throws {
    try await target.createVolume()
    _ = try await target.client.call(
      "accel_crypto_key_create",
      ["name": "k", "cipher": "AES_XTS", "key": .string(Self.key), "key2": .string(Self.tweak)])
    _ = try await target.client.call(
      "bdev_crypto_create", ["base_bdev_name": "disk", "name": "secret", "key_name": "k"])
  }

  /// Vector 4 of IEEE 1619-2007, annex B: the bytes 0 to 255 twice, in block 0.
  @Test func encryptsAsTheStandardSays() async throws {
    let target = try Target(.memory)
    try await encrypted(target)
    let uri = try await NBDTests.export(target, "secret")
    let pattern = target.directory.file("pattern")
    let fd = open(pattern, O_CREAT | O_WRONLY, 0o600)
    _ = write(fd, (0...255).map { UInt8($0) }, 256)
    close(fd)
    _ = try await NBDTests.io(uri, "write -s \(pattern) 0 512", "flush")
    let expected: [UInt8] = [
      0x27, 0xA7, 0x47, 0x9B, 0xEF, 0xA1, 0xD4, 0x76, 0x48, 0x9F, 0x30, 0x8C, 0xD4, 0xCF, 0xA6, 0xE2, 0xA9, 0x6E,
      0x4B, 0xBE, 0x32, 0x08, 0xFF, 0x25, 0x28, 0x7D, 0xD3, 0x81, 0x96, 0x16, 0xE8, 0x9C,
    ]
    #expect(target.bytes(at: 0, count: 32) == expected)
    // The same bytes elsewhere look different, and all of it comes back.
    _ = try await NBDTests.io(uri, "write -P 7 4k 1M", "read -P 7 4k 1M", "write -z 64k 64k", "read -P 0 64k 64k")
    #expect(target.bytes(at: 4096, count: 512) != target.bytes(at: 4608, count: 512))
    #expect(target.bytes(at: 65536, count: 512).contains { $0 != 0 })
  }

  @Test func keysGoInAndNeverOut() async throws {
    let target = try Target(.memory)
    try await encrypted(target)
    let client = target.client
    let shown = try await client.call("accel_crypto_keys_get").text
    #expect(shown.contains("AES_XTS") && !shown.lowercased().contains(Self.key))
    for subsystem in ["accel", "bdev"] {
      let configuration = try await client.call("framework_get_config", ["name": .string(subsystem)]).text.lowercased()
      #expect(!configuration.contains(Self.key) && !configuration.contains(Self.tweak))
    }
    let state = target.directory.file("state")
    #expect(contentsOfFile("\(state)/softdpu.json")?.lowercased().contains(Self.key) == false)
    var status = stat()
    #expect(stat("\(state)/keys.json", &status) == 0 && status.st_mode & 0o777 == 0o600)

    let bad: [(String, String)] = [
      (Self.key, Self.key), ("00", "11"), ("zz", Self.tweak), (Self.key, ""), (Self.key + "00", Self.tweak + "00"),
    ]
    for (key, tweak) in bad {
      do {
        _ = try await client.call(
          "accel_crypto_key_create",
          ["name": "b", "cipher": "AES_XTS", "key": .string(key), "key2": .string(tweak)])
        Issue.record("a bad key was taken")
      } catch let error as JSONRPCError {
        #expect(error.serverCode == -22 && !"\(error)".contains(Self.tweak))
      }
    }
    await expectCode(-17) {
      try await client.call(
        "accel_crypto_key_create",
        ["name": "k", "cipher": "AES_XTS", "key": .string(Self.key), "key2": .string(Self.tweak)])
    }
    await expectCode(-16) { try await client.call("accel_crypto_key_destroy", ["key_name": "k"]) }
    // What lies below is not shown beside it.
    await expectCode(-32602) {
      try await client.call("vhost_create_blk_controller", ["ctrlr": "c", "dev_name": "disk"])
    }
    _ = try await client.call("bdev_crypto_delete", ["name": "secret"])
    _ = try await client.call("accel_crypto_key_destroy", ["key_name": "k"])
    #expect(contentsOfFile("\(state)/keys.json")?.contains("\"k\"") == false)
  }

  @Test func anEncryptedDeviceComesBackWithItsKey() async throws {
    let target = try Target(.disk)
    try await encrypted(target)
    let uri = try await NBDTests.export(target, "secret")
    _ = try await NBDTests.io(uri, "write -P 5 0 1M")
    let uuid = try await target.client.call("bdev_get_bdevs", ["name": "secret"])[0]?["uuid"]
    target.dataPlane.stop()
    let next = try Target.start(target.directory)
    defer { next.stop() }
    let client = JSONRPCClient(path: target.directory.file("rpc.sock"))
    #expect(try await client.call("bdev_get_bdevs", ["name": "secret"])[0]?["uuid"] == uuid)
    _ = try await NBDTests.io(uri, "read -P 5 0 1M")
    #expect(!target.bytes(at: 0, count: 4096).contains([5, 5, 5, 5, 5, 5, 5, 5]))
  }
}
