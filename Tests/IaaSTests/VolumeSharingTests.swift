import IaaS
import Testing

@Suite("How many servers may have a volume")
struct VolumeSharingTests {
  @Test("A volume is made as its claim's access modes allow it all, or not at all")
  func accessModes() {
    let cases: [([String], VolumeSharing?)] = [
      ([], .exclusive), (["ReadWriteOnce"], .exclusive), (["ReadWriteOncePod"], .exclusive),
      (["ReadOnlyMany"], .readers), (["ReadWriteMany"], .writers), (["ReadWriteOnce", "ReadWriteMany"], .writers),
      (["ReadOnlyMany", "ReadWriteMany"], .writers), (["ReadWriteOnce", "ReadOnlyMany"], nil), (["Whatever"], nil),
      (["ReadWriteMany", "Whatever"], nil),
    ]
    for (modes, sharing) in cases { #expect(VolumeSharing(accessModes: modes) == sharing, "\(modes)") }
  }

  @Test("What a volume may be stands in its handle, with its claim, and in no handle of another kind")
  func handles() {
    let uid = "6f1c2b8e-0d54-4e27-9a53-0b1f6c7f5d11"
    for sharing in VolumeSharing.allCases {
      let handle = sharing.handle(claimUID: uid)
      #expect(Names.isVolumeHandle(handle) && handle.hasPrefix("pvc-\(uid)"))
      #expect(VolumeSharing(handle: handle) == sharing)
      #expect(VolumeSharing.claimUID(ofHandle: handle) == uid)
    }
    for handle in ["data-rwx", "data-rox", "pvc-1", "pvc-rwx-1", "-rwx", ""] {
      #expect(VolumeSharing(handle: handle) == .exclusive, "\(handle)")
    }
    #expect(VolumeSharing.claimUID(ofHandle: "by-hand") == nil)
  }

  @Test("Of a volume for one server all machines' attachments have one name, of others each machine's has its own")
  func names() {
    #expect(Names.attachment(volume: "pvc-1", machineUID: "a") == "ycloud-pvc-1")
    #expect(Names.attachment(volume: "pvc-1", machineUID: "b") == Names.attachment(volume: "pvc-1"))
    #expect(Names.attachment(volume: "pvc-1-rwx", machineUID: "a") == "ycloud-pvc-1-rwx.a")
    #expect(Names.attachment(volume: "pvc-1-rox", machineUID: "b") == "ycloud-pvc-1-rox.b")
  }
}
