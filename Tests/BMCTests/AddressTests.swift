import BMC
import Testing
import TestSupport

@Suite struct AddressTests {
  @Test(arguments: [
    ("redfish+https://10.0.0.1", "redfish+https://10.0.0.1:443", nil),
    ("redfish://bmc-1.example:8443/", "redfish+https://bmc-1.example:8443", nil),
    ("redfish+http://127.0.0.1:8000/redfish/v1/Systems/1", "redfish+http://127.0.0.1:8000", "/redfish/v1/Systems/1"),
    ("redfish+https://[fe80::1]:443/redfish/v1", "redfish+https://[fe80::1]:443", nil),
    ("IPMI://host", "ipmi://host:623", nil),
    ("ipmi://host:9623?cipher=17", "ipmi://host:9623", nil),
  ])
  func parses(_ text: String, endpoint: String, path: String?) throws {
    let address = try BMCAddress(text)
    #expect(address.endpoint == endpoint)
    #expect(address.systemPath == path)
    #expect(try BMCAddress(address.description) == address)
  }

  @Test(arguments: [
    "", "host", "http://host", "redfish+https://", "redfish+https://user:pw@host", "redfish+https://host:0",
    "redfish+https://host:65536", "redfish+https://host:+1", "redfish+https://host/other", "ipmi://host/path",
    "ipmi://-H", "ipmi://ho st", "redfish+https://[fe80::1", "redfish+https://host/redfish/v1//x",
    "redfish+https://host/redfish/v1/../x", "ipmi://host?cipher=99", "redfish+https://host?x=1", "ipmi://h\u{e9}st",
  ])
  func refuses(_ text: String) {
    let error = #expect(throws: BMCError.self) { try BMCAddress(text) }
    #expect(error?.code == .address)
    #expect(error?.message.contains("pw") == false)
  }

  @Test func survivesRandomText() {
    var random = SeededGenerator(seed: 7)
    let alphabet = Array("redfish+https://[]:@?#%.-0123abc\u{0}\n ")
    for _ in 0..<20_000 {
      let text = String(
        (0..<Int.random(in: 0...40, using: &random)).map { _ in
          alphabet[Int.random(in: 0..<alphabet.count, using: &random)]
        })
      _ = try? BMCAddress(text)
      _ = try? BMCAddress("redfish+https://" + text)
    }
  }

  @Test func credentialsDoNotShowThePassword() {
    let credentials = BMCCredentials(username: "admin", password: "geheim")
    var dumped = ""
    dump(credentials, to: &dumped)
    for text in ["\(credentials)", String(reflecting: credentials), dumped] { #expect(!text.contains("geheim")) }
  }
}
