/// What went wrong between a front end and its target.
public struct FrontendError: Error, CustomStringConvertible {
  public let description: String
  public init(_ description: String) { self.description = description }
}
