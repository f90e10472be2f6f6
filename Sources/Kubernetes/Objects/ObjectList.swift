/// One page of a collection, or all of it.
public struct ObjectList<T: Sendable>: Sendable {
  public var items: [T]
  /// The version of the collection that this list shows; a watch from here misses nothing.
  public var resourceVersion: String
  /// Where it is set, there are more pages.
  public var continueToken: String?
  /// How many more there are, where the server knows.
  public var remainingItemCount: Int64?

  public init(
    items: [T], resourceVersion: String, continueToken: String? = nil, remainingItemCount: Int64? = nil
  ) {
    self.items = items
    self.resourceVersion = resourceVersion
    self.continueToken = continueToken
    self.remainingItemCount = remainingItemCount
  }
}

extension ObjectList: Equatable where T: Equatable {}

/// `metav1.ListMeta`.
struct ListMeta: Decodable {
  var resourceVersion: String?
  var `continue`: String?
  var remainingItemCount: Int64?
}

/// An item of a list or a watch that may not fit the type it should have.
package enum Item<T: Decodable & Sendable>: Decodable, Sendable {
  case decoded(T)
  /// What is known of an object that does not decode, and why it does not.
  case undecodable(ObjectMeta, reason: String)

  private struct Partial: Decodable { var metadata: ObjectMeta }

  package init(from decoder: any Decoder) throws {
    do {
      self = .decoded(try T(from: decoder))
    } catch {
      self = .undecodable(try Partial(from: decoder).metadata, reason: "\(error)")
    }
  }
}

struct ListEnvelope<T: Decodable & Sendable>: Decodable {
  var metadata: ListMeta?
  /// Null where an API server written in Go has an empty slice.
  var items: [T]?
}
