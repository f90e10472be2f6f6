import JSON
import TestSupport
import Testing

/// Disks and network cards of a machine that runs and is never restarted meanwhile.
extension ChangeTests {
  /// Tells what the guest has, whenever that changes, and reads a disk of 64 or 96 MiB for as long as it is there.
  private static let watcher = """
    #!/bin/sh
    reads() {
      while [ -e /sys/block/$1 ]; do
        begin=$(cut -d' ' -f1 /proc/uptime | tr -d .)
        dd if=/dev/$1 of=/dev/null bs=1M count=4 iflag=direct 2>/dev/null || break
        echo "read: $(($(cut -d' ' -f1 /proc/uptime | tr -d .) - begin)) hundredths"
        usleep 200000
      done
    }
    while :; do
      state=""
      for disk in /sys/block/vd*; do
        name=${disk##*/}
        serial=$(cat $disk/serial 2>/dev/null)
        size=$(cat $disk/size 2>/dev/null)
        state="$state $serial=$size"
        if [ "$size" = 131072 ] && [ "$serial" != "$tried" ]; then
          tried=$serial
          dd if=/dev/urandom of=/tmp/probe bs=1M count=1 2>/dev/null
          dd if=/tmp/probe of=/dev/$name bs=1M seek=8 oflag=direct 2>/dev/null
          dd if=/dev/$name of=/tmp/back bs=1M skip=8 count=1 iflag=direct 2>/dev/null
          cmp /tmp/probe /tmp/back && echo "written and read: $serial"
          reads $name &
        fi
      done
      for card in /sys/class/net/eth*; do
        name=${card##*/}
        state="$state $name=$(cat $card/address 2>/dev/null)"
        if [ $name = eth1 ] && [ -z "$asked" ]; then
          asked=1
          (ip link set eth1 up; udhcpc -f -q -n -t 20 -T 1 -i eth1 -s /bin/true >/dev/null 2>&1) &
        fi
      done
      [ "$state" = "$last" ] || echo "devices:$state ."
      last=$state
      usleep 50000
    done
    """

  @Test("Disks and cards come, change and go while the guest runs, without a restart")
  func hotPlug() async throws {
    let cloud = try CloudUnderTest.running
    var manifest = MachineManifest(name: "hot")
    manifest.userData = Self.watcher
    try await cloud.apply(manifest.json)
    try await cloud.eventuallyRunning("hot")
    let console = "\(cloud.directory)/hosts/host-01/console.log"
    try await eventually(within: .seconds(30), "the guest tells what it has") {
      (contentsOfFile(console) ?? "").contains("eth0=")
    }
    let guest = GuestReport(console: console, start: (contentsOfFile(console) ?? "").utf8.count)
    var figures: [String] = []
    func within(_ what: String, _ limit: Duration = .seconds(30), _ isSeen: @Sendable () -> Bool) async throws {
      let begin = ContinuousClock.now
      try await eventually(within: limit, every: .milliseconds(20), "\(what): \(guest.devices)") { isSeen() }
      figures.append("\(what) \(begin.duration(to: .now))")
    }

    // A disk with its name and number, with I/O, of the class that counts where none is named.
    try await cloud.bmctl("disk", "add", "hot", "data", "--size", "64Mi")
    try await within("disk in the guest") { guest.devices.contains("=131072") }
    try await eventually(within: .seconds(30), every: .milliseconds(100)) {
      try await cloud.disk("data", of: "hot")?["attached"]?.boolValue == true
    }
    let serial = try #require(try await cloud.disk("data", of: "hot")?["serial"]?.stringValue)
    #expect(guest.devices.contains(" \(serial)=131072"))
    #expect(try await cloud.disk("data", of: "hot")?["device"]?.stringValue == "/dev/disk/by-id/virtio-\(serial)")
    try await eventually(within: .seconds(30)) { guest.lines("written and read: ").last?.hasSuffix(serial) == true }

    // Limits, while it is read all the time.
    try await eventually(within: .seconds(60)) { guest.lines("read: ").count >= 3 }
    let unlimited = guest.times.min() ?? 0
    try await cloud.bmctl("disk", "limit", "hot", "data", "--read-bandwidth", "1Mi", "--wait")
    #expect(try await cloud.disk("data", of: "hot")?["limits"]?["readBandwidth"]?.stringValue == "1Mi")
    let count = guest.times.count
    try await eventually(within: .seconds(60), "\(guest.times)") { guest.times.count >= count + 2 }
    #expect((guest.times.last ?? 0) > 4 * max(unlimited, 25), "4 MiB at 1 MiB a second, after \(unlimited) hundredths")
    try await cloud.bmctl("disk", "limit", "hot", "data", "--read-bandwidth", "0", "--wait")
    #expect(try await cloud.disk("data", of: "hot")?["limits"] == nil)

    // Growth under I/O.
    try await cloud.bmctl("disk", "grow", "hot", "data", "96Mi")
    try await within("growth in the guest") { guest.devices.contains(" \(serial)=196608") }

    // A card with an address.
    try await cloud.bmctl("nic", "add", "hot", "eth1")
    try await within("card in the guest") { guest.devices.contains(" eth1=") }
    try await eventually(within: .seconds(60), every: .milliseconds(200), "the card's address is known") {
      let addresses = try await cloud.object("bmm", "hot")?["status"]?["addresses"]?.arrayValue ?? []
      return addresses.contains { $0["interface"]?.stringValue == "eth1" && $0["address"]?.stringValue != nil }
    }
    #expect(try await cloud.phase("hot") == "Running")

    // And away with both; the disk that it booted from stays.
    try await cloud.bmctl("nic", "remove", "hot", "eth1")
    try await within("card away from the guest") { !guest.devices.contains(" eth1=") }
    try await cloud.bmctl("disk", "remove", "hot", "data")
    try await within("disk away from the guest") { !guest.devices.contains(" \(serial)=") }
    try await eventually(within: .seconds(60), every: .milliseconds(100), "nothing is left of either") {
      let isTold = try await cloud.condition("Unplugged", of: "hot") != nil
      let attachments = try await cloud.objects("volumeattachment").count
      return attachments == 1 && !isTold
    }
    #expect(try await cloud.condition("RestartNeeded", of: "hot") == nil)
    #expect(!guest.lines("tiny: ").contains { $0.contains("started after") }, "it was restarted")
    #expect(try await cloud.object("pvc", "hot-data") != nil, "the volume stays")
    print("hot plug: \(figures.joined(separator: ", "))")
    try await cloud.deleteAndCheck("hot")
  }
}

/// What the watcher in the guest has told on its console since a moment.
private struct GuestReport: Sendable {
  let console: String
  /// Bytes of the console's log that were there before.
  let start: Int

  func lines(_ prefix: String) -> [String] {
    (contentsOfFile(console) ?? "").utf8.dropFirst(start).split(separator: 10).map { line in
      String(decoding: line.last == 13 ? line.dropLast() : line, as: UTF8.self)
    }.filter { $0.hasPrefix(prefix) }
  }

  /// Serial numbers with sectors, and cards with addresses, as they were told last.
  var devices: String { lines("devices:").last ?? "" }

  /// How long the guest took to read 4 MiB, in hundredths of a second.
  var times: [Int] {
    lines("read: ").compactMap { line in line.split(separator: " ").dropFirst().first.flatMap { Int($0) } }
  }
}

extension CloudUnderTest {
  /// A disk in a machine's status.
  func disk(_ name: String, of machine: String) async throws -> JSONValue? {
    try await object("bmm", machine)?["status"]?["volumes"]?.arrayValue?.first { $0["disk"]?.stringValue == name }
  }
}
