/// Bounds on what a BMC may cost.
public struct BMCLimits: Sendable, Hashable {
  /// Time to a connection.
  public var connect: Duration = .seconds(5)
  /// Time for one request, answer included.
  public var request: Duration = .seconds(30)
  /// Time for one call of `BMC`, which may take several requests.
  public var call: Duration = .seconds(60)
  /// Time for reading an inventory, which takes many requests. Nothing else is asked of the BMC in that time.
  public var inventory: Duration = .seconds(120)
  /// Time for a picture of the screen, which somebody waits for.
  public var screenshot: Duration = .seconds(25)
  /// Bytes in one answer.
  public var answerBytes = 4 << 20
  /// Calls waiting for one BMC; one runs at a time, because BMCs are small.
  public var waiting = 16
  /// For how long refused credentials are not tried again.
  public var refusedCredentials: Duration = .seconds(1800)
  /// For how long an account that the BMC has locked is not tried: somebody else's mistakes lock it, and BMCs unlock it
  /// by themselves.
  public var lockedAccount: Duration = .seconds(60)
  /// How many members of a collection (NICs, drives, processors) an inventory reads.
  public var inventoryMembers = 32

  public init() {}
}
