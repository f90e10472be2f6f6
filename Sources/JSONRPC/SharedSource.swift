import Dispatch

/// A dispatch source that several threads may hold.
///
/// SAFETY: libdispatch documents its objects as safe to call from any thread; the overlay does not say so in types.
struct SharedSource<Source>: @unchecked Sendable {
  let source: Source
  init(_ source: Source) { self.source = source }
}
