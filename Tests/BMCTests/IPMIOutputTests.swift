import BMC
import Testing
import TestSupport

@Suite struct IPMIOutputTests {
  @Test func readsPower() {
    #expect(IPMIOutput.power("Chassis Power is on\n") == .on)
    #expect(IPMIOutput.power("Loading...\nChassis Power is off\n") == .off)
    #expect(IPMIOutput.power("") == .unknown)
    #expect(IPMIOutput.power("Chassis Power is maybe") == .unknown)
  }

  @Test(arguments: [
    (
      "> RAKP 2 HMAC is invalid\nError: Unable to establish IPMI v2 / RMCP+ session\n",
      IPMIOutput.SessionFailure.password
    ),
    (
      "RAKP 2 message indicates an error : unauthorized name\nError: Unable to establish IPMI v2 / RMCP+ session",
      .username
    ),
    (
      "Get Auth Capabilities error\nError issuing Get Channel Authentication Capabilities request\n"
        + "Error: Unable to establish IPMI v2 / RMCP+ session\n", .silent
    ),
    ("Address lookup for x failed\nCould not open socket!\nError: Unable to establish IPMI v2 / RMCP+ session", .name),
    (
      "Error in open session response message : invalid authentication algorithm\n\n"
        + "Error: Unable to establish IPMI v2 / RMCP+ session", .cipher
    ),
  ])
  func tellsWhyThereIsNoSession(_ errors: String, failure: IPMIOutput.SessionFailure) {
    #expect(IPMIOutput.sessionFailure("Loading IANA PEN Registry...\n" + errors) == failure)
  }

  @Test func aRefusedCommandIsNoFailedSession() {
    let errors = "Loading IANA PEN Registry...\n Device not present (Invalid data field in request)\n"
    #expect(IPMIOutput.sessionFailure(errors) == nil)
    #expect(IPMIOutput.reason(errors).contains("Device not present"))
  }

  @Test func aRefusalBecauseOfTheStateIsTold() {
    let prefix = "Set Chassis Power Control to Down/Off failed: "
    #expect(IPMIOutput.isStateRefusal(prefix + "Command not supported in present state\n"))
    #expect(!IPMIOutput.isStateRefusal(prefix + "Node busy\n"))
    #expect(!IPMIOutput.isStateRefusal(prefix + "Insufficient privilege level\n"))
  }

  @Test(arguments: [
    ("Set Chassis Power Control to Up/On failed: Node busy\n", BMCError.Code.busy),
    ("Get Device ID command failed: 0xc0 Node busy\n", .busy),
    ("Set Chassis Power Control to Down/Off failed: BMC initialization in progress\n", .busy),
    ("Get Chassis Power Status failed: Timeout\n", .timeout),
    ("Get Device ID command failed: 0xc3 Timeout\n", .timeout),
    ("Set Chassis Power Control to Up/On failed: Insufficient privilege level\n", .rejected),
    ("Set Chassis Power Control to Down/Off failed: Command not supported in present state\n", .rejected),
    ("Set Chassis Power Control to Up/On failed: Unknown (0x80)\n", .rejected),
    ("Session Timeout\nSet Chassis Power Control to Up/On failed: Invalid command\n", .rejected),
  ])
  func aBusyBMCIsAskedAgainAndARefusalIsNot(_ errors: String, code: BMCError.Code) {
    let error = IPMIOutput.refusal("Loading IANA PEN Registry...\n" + errors, operation: "on of b")
    #expect(error.code == code)
    #expect(error.isTransient == (code != .rejected))
    #expect(error.isStateRefusal == errors.contains("present state"))
  }

  @Test func readsInventory() {
    var inventory = HardwareInventory()
    IPMIOutput.addController("Firmware Revision         : 9.08\nManufacturer Name         : ACME\n", to: &inventory)
    IPMIOutput.addFRU(
      " Product Manufacturer  : Dell Inc.\n Product Name          : R750: big\n Product Serial        : \n"
        + " Board Serial          : CN1\n", to: &inventory)
    #expect(inventory.bmcFirmwareVersion == "9.08")
    #expect(inventory.manufacturer == "Dell Inc." && inventory.model == "R750: big" && inventory.serialNumber == "CN1")
  }

  @Test func survivesRandomText() {
    var random = SeededGenerator(seed: 3)
    for _ in 0..<5_000 {
      let text = String(decoding: random.bytes(Int.random(in: 0...200, using: &random)), as: UTF8.self)
      var inventory = HardwareInventory()
      IPMIOutput.addController(text, to: &inventory)
      IPMIOutput.addFRU("x:" + text, to: &inventory)
      _ = IPMIOutput.power("Chassis Power is " + text)
      _ = IPMIOutput.sessionFailure("indicates an error :" + text)
      _ = IPMIOutput.refusal(text, operation: "x")
    }
  }
}
