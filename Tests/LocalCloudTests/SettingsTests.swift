import LocalCloud
import Testing

@Suite("Settings of a local cloud")
struct SettingsTests {
  @Test("A new cloud gets the defaults, a flag replaces one of them")
  func defaults() throws {
    var options = CloudOptions()
    options.hosts = 3
    let settings = try CloudSettings.resolve(options, existing: nil)
    #expect(settings.name == "yc0")
    #expect(settings.subnet == "192.168.77.1/24")
    #expect(settings.hostNames == ["host-01", "host-02", "host-03"])
    #expect(CloudSettings.dpuNode(of: "host-03") == "dpu-03")
  }

  @Test("Flags that are left out keep what the cloud has")
  func keepsExisting() throws {
    var options = CloudOptions()
    options.name = "lab"
    options.hosts = 1
    options.hostMemoryMiB = 256
    let first = try CloudSettings.resolve(options, existing: nil)
    #expect(try CloudSettings.resolve(CloudOptions(), existing: first) == first)
  }

  @Test("What data depend on cannot be changed, and servers are not taken away")
  func refusesChanges() throws {
    let existing = try CloudSettings.resolve(CloudOptions(), existing: nil)
    for change: (inout CloudOptions) -> Void in [
      { $0.name = "other" }, { $0.subnet = "10.1.2.1/24" }, { $0.pool = "/srv/pool" }, { $0.poolGiB = 1 },
      { $0.hosts = 1 },
    ] {
      var options = CloudOptions()
      change(&options)
      #expect { try CloudSettings.resolve(options, existing: existing) } throws: {
        ($0 as? LocalCloudError)?.code == .invalidSettings
      }
    }
    var more = CloudOptions()
    more.hosts = 5
    more.hostMemoryMiB = 4096
    #expect(try CloudSettings.resolve(more, existing: existing).hosts == 5)
  }

  struct Mistake: Sendable, CustomTestStringConvertible {
    var flag: String
    var make: @Sendable (inout CloudOptions) -> Void

    init(_ flag: String, _ make: @escaping @Sendable (inout CloudOptions) -> Void) {
      self.flag = flag
      self.make = make
    }

    var testDescription: String { flag }
  }

  static let mistakes = [
    Mistake("--name") { $0.name = "UPPER" },
    Mistake("--name") { $0.name = "" },
    Mistake("--name") { $0.name = "a-name-too-long" },
    Mistake("--name") { $0.name = "0a" },
    Mistake("--subnet") { $0.subnet = "192.168.77.1" },
    Mistake("--subnet") { $0.subnet = "192.168.77.0/24" },
    Mistake("--subnet") { $0.subnet = "192.168.77.1/30" },
    Mistake("--subnet") { $0.subnet = "300.1.1.1/24" },
    Mistake("--hosts") { $0.hosts = -1 },
    Mistake("--hosts") { $0.hosts = 65 },
    Mistake("--host-memory") { $0.hostMemoryMiB = 1 },
    Mistake("--host-cpus") { $0.hostCPUs = 0 },
    Mistake("--pool-size") { $0.poolGiB = 0 },
    Mistake("--pool") { $0.pool = "relative" },
  ]

  @Test("Values out of range are refused with the flag's name", arguments: mistakes)
  func refusesValues(mistake: Mistake) throws {
    var options = CloudOptions()
    mistake.make(&options)
    let error = #expect(throws: LocalCloudError.self) { try CloudSettings.resolve(options, existing: nil) }
    #expect(error?.message.contains(mistake.flag) == true)
  }

  @Test("A directory with a long path gets a short one for its sockets")
  func shortPath() throws {
    let short = try CloudDirectory(absolutePath: "/srv/cloud")
    #expect(short.shortPath == "/srv/cloud")
    let long = try CloudDirectory(absolutePath: "/home/somebody/with/a/very/long/path/to/the/checkout/.ycloud")
    let bus = "\(long.host("host-64").bus)/blk-00-pvc-00000000-0000-0000-0000-000000000000"
    #expect(bus.utf8.count <= 107)
    #expect(long.shortPath.hasPrefix("/run/ycloud/"))
  }

  @Test(
    "Directories that QEMU or mount would misread are refused", arguments: ["relative", "/", "/a,b", "/a\"b", "/a/"])
  func badDirectories(path: String) {
    #expect(throws: LocalCloudError.self) { try CloudDirectory(absolutePath: path) }
  }
}

@Suite("Ports of a local cloud")
struct PortPlanTests {
  private let uses = PortPlan.uses(hosts: ["host-01", "host-02"])

  @Test("Every use has a port of its own, and busy ports are passed over")
  func distinct() throws {
    let busy: Set = [20_001, 20_002, 20_005]
    let ports = try PortPlan.choose(uses: uses, remembered: [:], base: 20_000) { !busy.contains($0) }
    #expect(Set(ports.keys) == Set(uses))
    #expect(Set(ports.values).count == uses.count)
    #expect(busy.isDisjoint(with: ports.values))
    #expect(ports[PortPlan.etcdClient] == 20_000)
  }

  @Test("Ports that were chosen before stay when servers are added")
  func remembers() throws {
    let first = try PortPlan.choose(uses: uses, remembered: [:], base: 20_000) { _ in true }
    let more = PortPlan.uses(hosts: ["host-01", "host-02", "host-03"])
    let second = try PortPlan.choose(uses: more, remembered: first, base: 20_000) { _ in true }
    for (use, port) in first { #expect(second[use] == port) }
    #expect(Set(second.values).count == more.count)
  }

  @Test("When nothing is free there is an error, not an endless search")
  func exhausted() {
    #expect(throws: LocalCloudError.self) {
      try PortPlan.choose(uses: uses, remembered: [:], base: 65_000) { _ in false }
    }
  }

  @Test("Each use belongs to a process")
  func owners() {
    #expect(PortPlan.owner(of: PortPlan.etcdPeer) == "etcd")
    #expect(PortPlan.owner(of: PortPlan.upload) == "csi-controller")
    #expect(PortPlan.owner(of: PortPlan.bmc("host-01")) == "softhost-host-01")
    #expect(PortPlan.owner(of: PortPlan.metrics("bm-handler-host-01")) == "bm-handler-host-01")
    #expect(PortPlan.owner(of: PortPlan.apiServer) == "kube-apiserver")
  }

  @Test("The first ports of two directories differ, and stay below those that the kernel gives out")
  func bases() {
    let bases = (0..<50).map { PortPlan.defaultBase(directory: "/tmp/cloud-\($0)") }
    #expect(bases.allSatisfy { (16_400..<32_500).contains($0) })
    #expect(Set(bases).count > 25)
  }
}
