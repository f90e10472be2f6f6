import Glibc
import JSON
import JSONRPC
import TestSupport
import Testing

import SoftDPU

/// NBD over TLS, with other people's clients: libnbd's nbdinfo and nbdcopy, QEMU's qemu-img and qemu-io (both GnuTLS).
@Suite struct NBDTLSTests {
  /// A target with an authority, a server's certificate and a client's folder.
  struct Place {
    let target: Target
    let certificates: TestCertificates
    let port: Int
    /// A client that trusts the server and has no certificate.
    let stranger: String

    init(_ place: Target.Place = .memory, megabytes: Int = 64, handshakeTime: Duration = .seconds(30)) async throws {
      port = try TestEnvironment.freePort()
      target = try Target(place, megabytes: megabytes, handshakeTime: handshakeTime)
      certificates = try TestCertificates()
      try await certificates.makeAuthority("ca")
      try await certificates.sign("server", by: "ca", isServer: true)
      stranger = try await certificates.folder("stranger", trusting: "ca")
      try await target.createVolume()
    }

    func export(_ name: String = "disk", _ more: [String: JSONValue] = ["tls_mode": "required"]) async throws {
      var parameters: [String: JSONValue] = [
        "bdev_name": "disk", "nbd_device": .string("nbd://127.0.0.1:\(port)/\(name)"),
      ]
      if more["tls_psk"] == nil, !more.isEmpty {
        parameters["tls_certificate"] = .string(certificates.path("server.pem"))
        parameters["tls_key"] = .string(certificates.path("server-key.pem"))
      }
      parameters.merge(more) { $1 }
      _ = try await target.client.call("nbd_start_disk", .object(parameters))
    }

    func uri(_ folder: String, _ name: String = "disk") -> String {
      "nbds://127.0.0.1:\(port)/\(name)?tls-certificates=\(folder)"
    }

    func plain(_ name: String = "disk") -> String { "nbd://127.0.0.1:\(port)/\(name)" }

    /// What qemu-io says, which is to succeed or to fail.
    func qemu(_ folder: String, succeeds: Bool = true, _ commands: String...) async throws -> String {
      let run = try ChildProcess(
        "qemu-io",
        [
          "--object", "tls-creds-x509,id=tls0,endpoint=client,dir=\(folder)", "--image-opts",
          "driver=nbd,host=127.0.0.1,port=\(port),export=disk,tls-creds=tls0",
        ] + commands.flatMap { ["-c", $0] })
      let exit = try await run.waitForExit(within: .seconds(60))
      #expect((exit == .code(0)) == succeeds, "\(run.output)")
      return run.output
    }

    /// Limits what the disk moves in a second; 0 for no limit.
    func limit(megabytes: Int64) async throws {
      _ = try await target.client.call(
        "bdev_set_qos_limit", ["name": "disk", "rw_mbytes_per_sec": .integer(megabytes)])
    }

    /// Waits until the disk has been read from so often.
    func eventuallyReads(_ count: Int) async throws {
      let client = target.client
      try await eventually("a client reads") {
        (try await client.call("bdev_get_iostat", ["name": "disk"])["bdevs"]?[0]?["num_read_ops"]?.intValue ?? 0)
          > count
      }
    }

    /// Whether nbdinfo gets the size of the export.
    func isServed(_ uri: String) async throws -> Bool {
      let run = try ChildProcess("nbdinfo", ["--size", uri])
      return try await run.waitForExit(within: .seconds(20)) == .code(0)
    }
  }

  @Test func copiesAnImageBothWays() async throws {
    let place = try await Place(.disk, megabytes: 48)
    try await place.export()
    let (image, copy) = (place.target.directory.file("image"), place.target.directory.file("copy"))
    try await ChildProcess.run("sh", ["-c", "head -c \(48 << 20) /dev/urandom >\(image)"])
    let uri = place.uri(place.stranger)
    #expect(try await ChildProcess.run("nbdinfo", [uri]).contains("with TLS"))
    try await ChildProcess.run("nbdcopy", [image, uri])
    try await ChildProcess.run("nbdcopy", [uri, copy])
    try await ChildProcess.run("cmp", [image, copy])
    // Small requests, many at a time and of odd lengths, beside each other.
    let output = try await place.qemu(
      place.stranger, "aio_write -P 1 0 512", "aio_write -P 2 512 64k", "aio_write -P 3 1M 3M", "aio_flush",
      "read -P 1 0 512", "read -P 2 512 64k", "read -P 3 1M 3M", "discard 2M 64k", "read -P 0 2M 64k",
      "write -P 4 8M 30M", "read -P 4 8M 30M")
    #expect(!output.contains("failed") && !output.contains("Pattern"), "\(output)")
    #expect(place.target.bytes(at: 1 << 20, count: 4096) == [UInt8](repeating: 3, count: 4096))
  }

  /// A client that reads and reads no answers holds on to bounded memory, and holds up nobody.
  @Test func goesOnBesideAClientThatTakesNothing() async throws {
    let place = try await Place()
    try await place.export()
    let image = place.target.directory.file("image")
    try await ChildProcess.run("sh", ["-c", "head -c \(48 << 20) /dev/urandom >\(image)"])
    try await ChildProcess.run("nbdcopy", [image, place.uri(place.stranger)])
    let copy = place.target.directory.file("copy")
    try await place.limit(megabytes: 8)
    let reader = try ChildProcess("nbdcopy", ["--connections=1", place.uri(place.stranger), copy])
    try await place.eventuallyReads(4)
    reader.freeze()
    #expect(reader.isRunning)
    try await place.limit(megabytes: 0)
    for _ in 0..<3 { _ = try await place.qemu(place.stranger, "read 0 4M", "write -P 9 60M 64k") }
    reader.signal(SIGCONT)
    #expect(try await reader.waitForExit(within: .seconds(60)) == .code(0))
    try await ChildProcess.run("cmp", ["-n", "\(48 << 20)", image, copy])
  }

  @Test func refusesClientsWithoutTLS() async throws {
    let place = try await Place()
    try await place.export()
    #expect(try await !place.isServed(place.plain()))
    let client = try RawNBDClient(port: place.port)
    try client.begin()
    // Every option is refused but the one that begins TLS and the one that ends; also one that nobody knows.
    for option in [RawNBDClient.list, RawNBDClient.go("disk"), RawNBDClient.option(8), RawNBDClient.option(99)] {
      client.send(option)
      #expect(client.reply()?.type == RawNBDClient.tlsRequired)
    }
    client.send(RawNBDClient.option(1, Array("disk".utf8)))
    #expect(client.readToEnd() == [])
    #expect(try await place.isServed(place.uri(place.stranger)))
  }

  /// Where some exports require TLS and others allow it, the client chooses, and sees without TLS what it can have so.
  @Test func servesWithAndWithoutTLSWhereBothAreAllowed() async throws {
    let place = try await Place()
    try await place.export("disk", ["tls_mode": "allowed"])
    try await place.export("secret", ["tls_mode": "required"])
    #expect(try await place.isServed(place.plain()))
    #expect(try await place.isServed(place.uri(place.stranger)))
    #expect(try await !place.isServed(place.plain("secret")))
    #expect(try await place.isServed(place.uri(place.stranger, "secret")))
    let client = try RawNBDClient(port: place.port)
    try client.begin()
    client.send(RawNBDClient.list)
    #expect(client.reply()?.data.suffix(4) == Array("disk".utf8)[...])
    #expect(client.reply()?.type == 1)
    client.send(RawNBDClient.go("secret"))
    #expect(client.reply()?.type == RawNBDClient.tlsRequired)
    let list = try await ChildProcess.run(
      "nbdinfo", ["--list", "--json", "nbds://127.0.0.1:\(place.port)?tls-certificates=\(place.stranger)"])
    #expect(try JSONValue.parse(list)["exports"]?.arrayValue?.count == 2)
  }

  @Test func wantsACertificateOfItsClientsWhereToldTo() async throws {
    let place = try await Place()
    try await place.certificates.sign("client", by: "ca", isServer: false)
    try await place.certificates.makeAuthority("other")
    try await place.certificates.sign("foreign", by: "other", isServer: false)
    try await place.certificates.sign("server2", by: "ca", isServer: true)
    try await place.export("disk", ["tls_ca": .string(place.certificates.path("ca.pem"))])
    let member = try await place.certificates.folder("member", trusting: "ca", certificate: "client")
    let foreign = try await place.certificates.folder("foreigner", trusting: "ca", certificate: "foreign")
    let misused = try await place.certificates.folder("misused", trusting: "ca", certificate: "server2")
    #expect(try await place.isServed(place.uri(member)))
    _ = try await place.qemu(member, "write -P 7 0 1M", "read -P 7 0 1M")
    #expect(try await !place.isServed(place.uri(place.stranger)), "it has no certificate")
    #expect(try await !place.isServed(place.uri(foreign)), "another authority signed it")
    #expect(try await !place.isServed(place.uri(misused)), "it is one for servers")
    _ = try await place.qemu(foreign, succeeds: false, "read 0 512")
    // And the client that trusts another authority leaves.
    let wary = try await place.certificates.folder("wary", trusting: "other", certificate: "client")
    #expect(try await !place.isServed(place.uri(wary)))
    #expect(try await place.isServed(place.uri(member)))
  }

  @Test func servesClientsWithTheSameKey() async throws {
    let place = try await Place()
    let (right, wrong) = (String(repeating: "0123456789abcdef", count: 4), String(repeating: "fedc", count: 16))
    let keys = try place.certificates.directory.write("keys.psk", "# keys\nbob:\(wrong)\nalice:\(right)\n", mode: 0o600)
    try place.certificates.directory.write("alice", "alice:\(right)\n", mode: 0o600)
    try place.certificates.directory.write("mallory", "alice:\(wrong)\nmallory:\(right)\n", mode: 0o600)
    try await place.export("disk", ["tls_mode": "required", "tls_psk": .string(keys)])
    func uri(_ user: String, _ file: String) -> String {
      "nbds://\(user)@127.0.0.1:\(place.port)/disk?tls-psk-file=\(place.certificates.path(file))"
    }
    #expect(try await place.isServed(uri("alice", "alice")))
    #expect(try await !place.isServed(uri("alice", "mallory")))
    #expect(try await !place.isServed(uri("mallory", "mallory")))
    #expect(try await !place.isServed(place.uri(place.stranger)))
    let folder = place.certificates.path("psk")
    mkdir(folder, 0o700)
    try await ChildProcess.run("cp", [place.certificates.path("alice"), "\(folder)/keys.psk"])
    let output = try await ChildProcess.run(
      "qemu-io",
      [
        "--object", "tls-creds-psk,id=tls0,endpoint=client,username=alice,dir=\(folder)", "--image-opts",
        "driver=nbd,host=127.0.0.1,port=\(place.port),export=disk,tls-creds=tls0", "-c", "write -P 8 0 1M", "-c",
        "read -P 8 0 1M",
      ])
    #expect(!output.contains("failed"))
  }

  /// What is said in clear text behind the option that begins TLS could be anybody's.
  @Test func takesNothingInClearTextBehindTheBeginningOfTLS() async throws {
    let place = try await Place()
    try await place.export("disk", ["tls_mode": "allowed"])
    let client = try RawNBDClient(port: place.port)
    try client.begin()
    client.send(RawNBDClient.startTLS + RawNBDClient.go("disk"))
    #expect(client.readToEnd() == [], "neither an answer to the option nor to what came behind it")
    // The same, where it comes after the answer.
    let second = try RawNBDClient(port: place.port)
    try second.begin()
    second.send(RawNBDClient.startTLS)
    #expect(second.reply()?.type == 1)
    second.send(RawNBDClient.go("disk"))
    let rest = second.readToEnd()
    #expect((rest?.count ?? 99) < 20, "an alert at most: \(rest ?? [])")
  }

  /// Clients that leave in the middle of a handshake or a record, or talk nonsense, leave nothing behind.
  @Test func forgetsClientsThatBreakOff() async throws {
    let place = try await Place()
    try await place.export()
    #expect(try await place.isServed(place.uri(place.stranger)))
    let before = descriptorCount()
    let hello: [UInt8] = [22, 3, 1, 2, 0, 1, 0, 1, 252, 3, 3] + [UInt8](repeating: 7, count: 200)
    for round in 0..<60 {
      let client = try RawNBDClient(port: place.port)
      try client.begin()
      client.send(RawNBDClient.startTLS)
      #expect(client.reply()?.type == 1)
      switch round % 4 {
      case 0: client.send(Array(hello.prefix(Int.random(in: 1...200))))
      case 1: client.send((0..<Int.random(in: 1...600)).map { _ in UInt8.random(in: 0...255) })
      case 2: client.send(Array("GET / HTTP/1.1\r\n\r\n".utf8))
      default: break
      }
      // Nonsense ends the connection, where there is enough of it; half a handshake waits.
      if round % 4 == 2 { #expect(client.readToEnd() != nil) }
    }
    // Kills in the middle of writes: of whole records at best.
    for _ in 0..<5 {
      let writer = try ChildProcess(
        "sh", ["-c", "head -c \(48 << 20) /dev/urandom | nbdcopy - '\(place.uri(place.stranger))'"])
      let client = place.target.client
      let start = try await client.call("bdev_get_iostat", ["name": "disk"])["bdevs"]?[0]?["num_write_ops"]?.intValue
      try await eventually("the client writes") {
        let now = try await client.call("bdev_get_iostat", ["name": "disk"])["bdevs"]?[0]?["num_write_ops"]?.intValue
        return (now ?? 0) > (start ?? 0)
      }
      writer.kill()
    }
    try await eventually("the descriptors are back: \(before) of \(descriptorCount())") {
      descriptorCount() <= before
    }
    #expect(try await place.isServed(place.uri(place.stranger)))
    // Nothing holds on to the disk.
    _ = try await place.target.client.call(
      "nbd_stop_disk", ["nbd_device": .string("nbd://127.0.0.1:\(place.port)/disk")])
    _ = try await place.target.client.call("bdev_aio_delete", ["name": "disk"])
  }

  @Test func endsHandshakesThatNeverFinish() async throws {
    let place = try await Place(handshakeTime: .milliseconds(300))
    try await place.export()
    let client = try RawNBDClient(port: place.port)
    try client.begin()
    client.send(RawNBDClient.startTLS)
    #expect(client.reply()?.type == 1)
    client.send([22, 3, 1, 2, 0, 1])
    #expect(client.readToEnd() != nil, "the server waits for ever")
  }

  /// Those who begin handshakes and leave them lose to those who finish theirs.
  @Test func keepsFewHandshakesThatNobodyFinishes() async throws {
    let place = try await Place()
    try await place.export()
    var clients: [RawNBDClient] = []
    for _ in 0..<300 {
      let client = try RawNBDClient(port: place.port)
      try client.begin()
      client.send(RawNBDClient.startTLS)
      #expect(client.reply()?.type == 1)
      client.send([22, 3, 1, 2, 0])
      clients.append(client)
    }
    #expect(clients[0].readToEnd() == [], "the oldest has to go")
    #expect(try await place.isServed(place.uri(place.stranger)))
    var last = pollfd(fd: clients[299].fd, events: pollPeerEnded, revents: 0)
    #expect(poll(&last, 1, 0) == 0, "the youngest stays")
  }

  @Test func takesNewCertificatesWithoutARestart() async throws {
    let place = try await Place()
    let certificates = place.certificates
    try await certificates.makeAuthority("new")
    try await certificates.sign("later", by: "new", isServer: true)
    let modern = try await certificates.folder("modern", trusting: "new")
    try await place.export()
    #expect(try await place.isServed(place.uri(place.stranger)))
    #expect(try await !place.isServed(place.uri(modern)))
    // A client that is connected stays so.
    _ = try await place.qemu(place.stranger, "write -P 5 0 32M")
    let copy = place.target.directory.file("copy")
    try await place.limit(megabytes: 4)
    let reader = try ChildProcess("nbdcopy", ["--connections=1", place.uri(place.stranger), copy])
    try await place.eventuallyReads(4)
    // Half of the change is not taken: the key is not the certificate's.
    try await certificates.replace("server.pem", with: "later.pem")
    #expect(try await place.isServed(place.uri(place.stranger)))
    try await certificates.replace("server-key.pem", with: "later-key.pem")
    #expect(try await place.isServed(place.uri(modern)))
    #expect(try await !place.isServed(place.uri(place.stranger)))
    #expect(reader.isRunning)
    try await place.limit(megabytes: 0)
    #expect(try await reader.waitForExit(within: .seconds(60)) == .code(0), "\(reader.output)")
    // A file that went away changes nothing.
    unlink(certificates.path("server.pem"))
    #expect(try await place.isServed(place.uri(modern)))
  }

  @Test func saysWhatIsWrongWithTheFiles() async throws {
    let place = try await Place()
    let certificates = place.certificates
    try await certificates.sign("other", by: "ca", isServer: true)
    let junk = try certificates.directory.write("junk.pem", "junk\n")
    let shortKey = try certificates.directory.write("short.psk", "alice:0011\n")
    mkfifo(certificates.path("pipe"), 0o600)
    try await ChildProcess.run(
      "openssl",
      [
        "pkey", "-in", certificates.path("server-key.pem"), "-aes128", "-passout", "pass:x", "-out",
        certificates.path("locked.pem"),
      ])
    let cases: [(String, [String: JSONValue], [String])] = [
      ("no such file", ["tls_certificate": .string(certificates.path("none"))], ["tls_certificate", "none", "PEM"]),
      ("a path that depends on where we are", ["tls_key": "server-key.pem"], ["tls_key", "absolute"]),
      ("no certificate", ["tls_certificate": .string(junk)], ["tls_certificate", junk, "PEM"]),
      ("another's key", ["tls_key": .string(certificates.path("other-key.pem"))], ["tls_key", "other-key.pem"]),
      ("a locked key", ["tls_key": .string(certificates.path("locked.pem"))], ["tls_key", "passphrase"]),
      ("a pipe", ["tls_ca": .string(certificates.path("pipe"))], ["tls_ca", "pipe"]),
      ("no authority", ["tls_ca": .string(junk)], ["tls_ca", junk]),
      ("no key of 16 bytes", ["tls_psk": .string(shortKey)], ["tls_psk", shortKey, "NAME:HEX"]),
      ("both", ["tls_psk": .string(shortKey), "tls_key": "/x"], ["tls_psk", "alone"]),
      ("a mode that is none", ["tls_mode": "maybe"], ["maybe", "required"]),
      ("files without a mode", ["tls_mode": "none"], ["tls_mode", "leave"]),
    ]
    for (what, parameters, words) in cases {
      do {
        try await place.export("disk", parameters)
        Issue.record("\(what): was taken")
      } catch let error as JSONRPCError {
        #expect(error.serverCode == -22, "\(what): \(error)")
        for word in words { #expect(error.message.contains(word), "\(what): \(error.message)") }
      }
    }
    #expect(try await place.target.client.call("nbd_get_disks").arrayValue?.isEmpty == true)
    // The address is free, and takes one set of files.
    try await place.export()
    do {
      try await place.export("plain", [:])
      Issue.record("an export without TLS at an address with TLS was taken")
    } catch let error as JSONRPCError {
      #expect(error.message.contains("same TLS files"), "\(error.message)")
    }
    let disks = try await place.target.client.call("nbd_get_disks")
    #expect(disks.arrayValue?.count == 1 && disks[0]?["tls_mode"] == "required")
  }

  @Test func isKeptOverARestart() async throws {
    let place = try await Place()
    try await place.export()
    let state = ["state/softdpu.json", "state/softdpu.journal"].map {
      contentsOfFile(place.target.directory.file($0)) ?? ""
    }.joined()
    #expect(state.contains("server-key.pem") && !state.contains("PRIVATE KEY"))
    place.target.dataPlane.stop()
    let again = try Target.start(place.target.directory)
    defer { again.stop() }
    #expect(try await place.isServed(place.uri(place.stranger)))
    #expect(try await !place.isServed(place.plain()))
  }

  @Test func negotiatesTheModesByTheBook() {
    let disks = ["open", "secret"].map { name in
      NBDExport(
        name: name, size: 1 << 20, blockSize: 512, isReadOnly: false, canTrim: true, canWriteZeroes: true,
        requiresTLS: name == "secret")
    }
    func take(_ handshake: inout NBDHandshake, _ bytes: [UInt8]) -> (answer: [UInt8], next: NBDHandshake.Next) {
      let (_, answer, next) = handshake.take(
        bytes, find: { name in disks.first { $0.name == name } }, names: { disks.map(\.name) })
      return (answer, next)
    }
    func type(_ answer: [UInt8]) -> [UInt8] { Array(answer[12..<16]) }
    var selective = NBDHandshake(tls: .selective)
    _ = take(&selective, [0, 0, 0, 3])
    #expect(take(&selective, RawNBDClient.list).next == .list(["open"]))
    #expect(type(take(&selective, RawNBDClient.go("secret")).answer) == [0x80, 0, 0, 5])
    #expect(take(&selective, RawNBDClient.option(1, Array("secret".utf8))).next == .close)
    // What is agreed on before TLS counts no more behind it.
    _ = take(&selective, RawNBDClient.option(8))
    #expect(type(take(&selective, RawNBDClient.option(5, [1])).answer) == [0x80, 0, 0, 3])
    #expect(take(&selective, RawNBDClient.startTLS).next == .startTLS)
    #expect(type(take(&selective, RawNBDClient.startTLS).answer) == [0x80, 0, 0, 3])
    #expect(take(&selective, RawNBDClient.list).next == .list(["open", "secret"]))
    #expect(
      take(&selective, RawNBDClient.go("secret")).next
        == .serve(export: "secret", hasStructuredReplies: false, hasAllocationContext: false))
    var forced = NBDHandshake(tls: .required)
    _ = take(&forced, [0, 0, 0, 3])
    #expect(type(take(&forced, RawNBDClient.option(99)).answer) == [0x80, 0, 0, 5])
    #expect(take(&forced, RawNBDClient.option(2)).next == .close)
    var none = NBDHandshake(tls: .none)
    _ = take(&none, [0, 0, 0, 3])
    #expect(type(take(&none, RawNBDClient.startTLS).answer) == [0x80, 0, 0, 2])
  }
}
