/// A server's baseboard management controller: power, boot source and what hardware it reports.
///
/// Every call is bounded in time, may be repeated, and throws `BMCError`. A call that returned says only that the BMC
/// took the command: what became of it is read back with `power()`.
public protocol BMC: Sendable {
  /// The power state as the BMC reports it now.
  ///
  /// A single reading of `off` is no proof: BMCs report it early. Use `confirmOff(readings:interval:clock:)` where
  /// something depends on it.
  func power() async throws -> PowerState

  /// Asks for a change of power. Returns when the BMC accepted it; a BMC that finds it needless may refuse it, see
  /// `BMCError.isStateRefusal`.
  func setPower(_ action: PowerAction) async throws

  /// What the BMC knows of the hardware; what it does not tell is nil or empty.
  func inventory() async throws -> HardwareInventory

  /// Sets where the next boot (or every boot) starts from.
  func setBootOverride(_ override: BootOverride) async throws

  /// What the server's screen shows now. Code `unsupported` where the BMC cannot tell, and `rejected` as a state refusal
  /// where the server is off.
  func screenshot() async throws -> ScreenPicture
}

extension BMC {
  public func screenshot() async throws -> ScreenPicture {
    throw BMCError(
      .unsupported, operation: "take a picture of the screen",
      message: "this BMC has none (IPMI has no word for it); use the serial console")
  }
}

/// The power state of a server as reported by its BMC.
public enum PowerState: String, Sendable, Hashable, Codable {
  case on
  case off
  case poweringOn
  case poweringOff
  /// The BMC answered, but with no state (null) or one that is not known here.
  case unknown
}

/// A change of power that a BMC can be asked for.
public enum PowerAction: String, Sendable, Hashable, CaseIterable {
  case on
  /// Cuts the power at once.
  case forceOff
  /// Asks the operating system to shut down (ACPI power button); it may take its time or ignore it.
  case gracefulShutdown
  /// Resets at once, without the operating system's help.
  case forceRestart
  /// Asks the operating system to restart.
  case gracefulRestart
  /// Cuts the power and gives it again.
  case powerCycle
}

/// Where a server boots from, as a BMC can be told.
public struct BootOverride: Sendable, Hashable {
  public enum Source: String, Sendable, Hashable, CaseIterable {
    /// No override: the firmware's own order.
    case none
    case disk
    case network
    case cdrom
    case usb
    case firmwareSetup
  }

  public enum Duration: String, Sendable, Hashable {
    /// The next boot only.
    case once
    /// Every boot from now on.
    case continuous
  }

  public enum Firmware: String, Sendable, Hashable {
    case legacy
    case uefi
  }

  public var source: Source
  public var duration: Duration
  /// Nil leaves the mode as it is.
  public var firmware: Firmware?

  public init(source: Source, duration: Duration = .once, firmware: Firmware? = nil) {
    self.source = source
    self.duration = duration
    self.firmware = firmware
  }
}
