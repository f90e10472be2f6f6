import GRPCCore
import OPI
import OPIBridge
import SwiftProtobuf
import Testing

@Suite struct NamesTests {
  @Test func namesAreMadeOfCollectionsAndIdentifiers() throws {
    #expect(try OPIAioVolume.collection.name(id: "a", parent: "", field: "aio_volume_id") == "aioVolumes/a")
    #expect(
      try OPINvmeNamespace.collection.name(id: "n", parent: "nvmeSubsystems/s", field: "id")
        == "nvmeSubsystems/s/nvmeNamespaces/n")
    #expect(ResourceName.parent(of: "nvmeSubsystems/s/nvmeNamespaces/n") == "nvmeSubsystems/s")
    #expect(ResourceName.parent(of: "aioVolumes/a") == "")
    #expect(OPINvmeNamespace.collection.contains("nvmeSubsystems/s/nvmeNamespaces/n"))
    #expect(!OPINvmeController.collection.contains("nvmeSubsystems/s/nvmeNamespaces/n"))
    #expect(!OPIAioVolume.collection.contains("nvmeSubsystems/s/aioVolumes/n"))
  }

  @Test(arguments: ["", "-a", ".", "..", "a/b", "a b", "a%", "\u{0}", "é", String(repeating: "a", count: 129)])
  func refusesIdentifiersThatWouldBecomeStrangeFilesOrSockets(_ id: String) {
    let error = #expect(throws: RPCError.self) {
      try OPIAioVolume.collection.name(id: id, parent: "", field: "aio_volume_id")
    }
    #expect(error?.code == .invalidArgument)
    #expect(error?.message.contains("aio_volume_id") == true)
  }

  @Test(arguments: ["aioVolumes", "aioVolumes/", "nullVolumes/a", "aioVolumes/a/b/c", "aioVolumes/../a", "/a"])
  func refusesNamesOfOtherKinds(_ name: String) {
    #expect(throws: RPCError.self) { try OPIAioVolume.collection.check(name) }
  }
}

@Suite struct PageTests {
  @Test func goesThroughAListAPageAtATime() throws {
    let names = (0..<7).map { "x/\($0)" }
    var seen: [String] = []
    var token = ""
    repeat {
      let page = try Page(size: 3, token: token, scope: "x")
      let (part, next) = page.cut(names.shuffled(), scope: "x")
      #expect(part.count <= 3)
      seen += part
      token = next
    } while !token.isEmpty
    #expect(seen == names)
  }

  /// What stays is neither left out nor shown twice when others come and go between the pages.
  @Test func survivesChangesBetweenThePages() throws {
    let first = try Page(size: 2, token: "", scope: "x").cut(["x/b", "x/d", "x/f"], scope: "x")
    #expect(first.names == ["x/b", "x/d"])
    let second = try Page(size: 2, token: first.next, scope: "x").cut(["x/a", "x/e", "x/f"], scope: "x")
    #expect(second.names == ["x/e", "x/f"])
    #expect(second.next == "")
  }

  @Test func refusesStrangeSizesAndTokens() throws {
    #expect(throws: RPCError.self) { try Page(size: -1, token: "", scope: "x") }
    #expect(try Page(size: 0, token: "", scope: "x").size == Page.standardSize)
    #expect(try Page(size: 100_000, token: "", scope: "x").size == Page.largestSize)
    let (_, token) = try Page(size: 1, token: "", scope: "x").cut(["x/a", "x/b"], scope: "x")
    for bad in ["zz", "0", String(token.dropLast()), "ff20", "ü"] {
      #expect(throws: RPCError.self) { try Page(size: 1, token: bad, scope: "x") }
    }
    #expect(throws: RPCError.self) { try Page(size: 1, token: token, scope: "y") }
  }
}

@Suite struct FieldMaskTests {
  private let old = OPIQosVolume.with {
    $0.name = "qosVolumes/q"
    $0.volumeNameRef = "v"
    $0.limits.max.rwIopsKiops = 5
    $0.limits.max.rdBandwidthMbs = 7
  }

  @Test func takesOnlyWhatIsMasked() throws {
    let patch = OPIQosVolume.with {
      $0.volumeNameRef = "other"
      $0.limits.max.rwIopsKiops = 9
    }
    let one = try FieldMask.apply(patch, to: old, ["limits.max.rw_iops_kiops"])
    #expect(one.limits.max.rwIopsKiops == 9)
    #expect(one.limits.max.rdBandwidthMbs == 7)
    #expect(one.volumeNameRef == "v")
    // A message that is masked is replaced as a whole.
    let whole = try FieldMask.apply(patch, to: old, ["limits"])
    #expect(whole.limits.max.rdBandwidthMbs == 0)
    #expect(try FieldMask.apply(patch, to: old, ["*"]) == patch)
  }

  @Test func takesWhatIsSetWithoutAMask() throws {
    let patch = OPIQosVolume.with { $0.limits.max.wrBandwidthMbs = 3 }
    let result = try FieldMask.apply(patch, to: old, [])
    #expect(result.volumeNameRef == "v")
    #expect(result.limits.max.rwIopsKiops == 5)
    #expect(result.limits.max.wrBandwidthMbs == 3)
  }

  @Test func clearsAMaskedFieldThatThePatchLacks() throws {
    let result = try FieldMask.apply(OPIQosVolume(), to: old, ["limits", "volume_name_ref"])
    #expect(!result.hasLimits)
    #expect(result.volumeNameRef == "")
    #expect(result.name == old.name)
  }

  @Test func whatAClientOnlyRepeatsIsNoChange() throws {
    let record = OPINvmeSubsystem.with {
      $0.name = "nvmeSubsystems/s"
      $0.spec.nqn = "nqn.2024-01.org.example:s"
    }
    var shown = record
    shown.spec.modelNumber = "model"
    shown.spec.maxNamespaces = 32
    shown.status.firmwareRevision = "1"
    var wanted = shown
    wanted.spec.hostnqn = "nqn.2024-01.org.example:h"
    var expected = record
    expected.spec.hostnqn = wanted.spec.hostnqn
    let cleaned = try FieldMask.withoutEchoes(wanted, of: shown, since: record)
    #expect(cleaned.spec == expected.spec)
    wanted.spec.modelNumber = "other"
    #expect(try FieldMask.withoutEchoes(wanted, of: shown, since: record).spec.modelNumber == "other")
  }

  @Test func namesTheFirstFieldThatDiffers() throws {
    #expect(try FieldMask.firstDifference(old, old) == nil)
    var other = old
    other.limits.max.rdBandwidthMbs = 8
    #expect(try FieldMask.firstDifference(old, other) == "limits.max.rd_bandwidth_mbs")
    other.volumeNameRef = ""
    other.limits = old.limits
    #expect(try FieldMask.firstDifference(old, other) == "volume_name_ref")
  }
}
