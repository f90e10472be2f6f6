import Dispatch
import Glibc
import JSON
import Synchronization

/// The configuration on disk: `softdpu.json`, in the form of SPDK's `save_config`, and `softdpu.journal` with what has
/// changed since.
///
/// A change costs a line at the end of the journal, however much is configured. Lines that come while one is on its way
/// to the disk go there together. A journal that has become longer than its file is worth is put into a new one.
///
/// SAFETY, for every `unsafe` here: each path lives for the length of the call.
package final class ConfigurationStore: Sendable {
  /// What was written down, and what is to be told about how it was read.
  package struct Loaded: Sendable {
    package var configuration = SavedConfiguration()
    /// Bytes of a record that a crash cut short.
    package var tornBytes = 0
    /// Why all of it could not be put into one file; it is tried again with the next change.
    var failure: SoftDPUError?
  }

  /// A descriptor that is closed when nobody needs it any more: a rewrite replaces it while its sync is under way.
  private final class Descriptor: Sendable {
    let number: CInt
    init(_ number: CInt) { self.number = number }
    deinit { _ = Glibc.close(number) }
  }

  private struct State {
    var journal: Descriptor?
    /// Of the present journal: bytes, and records.
    var length = 0
    var records = 0
    /// The file that it follows.
    var follows = JournalText.Fingerprint([])
    /// Something could not be written: only a new file tells what is true.
    var isBroken = false
    var isClosed = false
    /// Records since the start, and how many of them are on disk.
    var written = 0
    var durable = 0
    var isSyncing = false
    var waiting: [(record: Int, body: @Sendable (SoftDPUError?) -> Void)] = []
  }

  private let directory: String
  private var file: String { "\(directory)/softdpu.json" }
  private var journal: String { "\(directory)/softdpu.journal" }
  private let state = Mutex(State())
  private let disk = DispatchQueue(label: "ConfigurationStore")

  /// How long a journal gets, in bytes: this, or twice its file.
  private static let minimumLimit = 1 << 20

  package init(directory: String) { self.directory = directory }

  // MARK: Reading

  /// Reads what is there. Where a journal has something to say, all of it is put into a new file first.
  package func load() throws(SoftDPUError) -> Loaded {
    let bytes = try DurableFile.bytes(file)
    let follows = JournalText.Fingerprint(bytes ?? [])
    var loaded = Loaded()
    if let bytes {
      guard let configuration = SavedConfiguration(try DurableFile.parse(bytes, file)) else {
        throw SoftDPUError(
          code: .state, operation: "read \(file)",
          message: "not a configuration as SPDK's save_config writes it; move the file away to start empty")
      }
      loaded.configuration = configuration
    }
    state.withLock { $0.follows = follows }
    guard let content = try content(of: journal) else {
      unsafe unlink("\(journal).new")
      return loaded
    }
    guard content.follows == follows else {
      // A rewrite that was cut between the renaming of its two files: the new journal, which is empty, is still to come.
      guard let next = try? self.content(of: "\(journal).new"), next.follows == follows, next.records.isEmpty else {
        throw SoftDPUError(
          code: .state, operation: "read \(journal)",
          message: "line 1: it follows another \(file) than this one; put that one back, or, to go on from this file "
            + "without the changes in the journal, move the journal away")
      }
      try remove(journal)
      try remove("\(journal).new")
      return loaded
    }
    for record in content.records {
      for change in record { loaded.configuration.apply(change) }
    }
    loaded.tornBytes = content.tornBytes
    if content.records.isEmpty, content.tornBytes == 0 {
      try remove("\(journal).new")
      try remove(journal)
    } else {
      let value = loaded.configuration.file
      loaded.failure = state.withLock { state -> SoftDPUError? in
        do throws(SoftDPUError) {
          try rewrite(value, &state)
          return nil
        } catch {
          // A start does not need a disk that takes bytes.
          state.isBroken = true
          return error
        }
      }
    }
    return loaded
  }

  /// The same without touching anything, for those who want to look.
  package static func read(directory: String) throws(SoftDPUError) -> SavedConfiguration {
    let store = ConfigurationStore(directory: directory)
    guard let bytes = try DurableFile.bytes(store.file),
      var configuration = SavedConfiguration(try DurableFile.parse(bytes, store.file))
    else { return SavedConfiguration() }
    if let content = try store.content(of: store.journal), content.follows == JournalText.Fingerprint(bytes) {
      for record in content.records { for change in record { configuration.apply(change) } }
    }
    return configuration
  }

  private func content(of path: String) throws(SoftDPUError) -> JournalText.Content? {
    guard let bytes = try DurableFile.bytes(path) else { return nil }
    do throws(JournalText.Failure) {
      return try JournalText.parse(bytes)
    } catch {
      throw SoftDPUError(
        code: .state, operation: "read \(path)",
        message: "\(error). Restore the file, or cut it before that line: what the lines from there on changed is lost "
          + "then. To go on from \(file) alone, move it away")
    }
  }

  private func remove(_ path: String) throws(SoftDPUError) {
    guard unsafe unlink(path) == 0 else { return }
    try DurableFile.syncDirectory(directory)
  }

  // MARK: Writing

  /// Writes changes down, which have been made already. They are on disk when `whenDurable` says so. `all` gives the
  /// whole configuration, with the changes, where a new file is due.
  func append(_ changes: [SavedConfiguration.Change], all: () -> JSONValue) throws(SoftDPUError) {
    let result = state.withLock { state -> Result<Void, SoftDPUError> in
      do throws(SoftDPUError) {
        guard !state.isClosed else { throw .system(ESHUTDOWN, "write \(journal)") }
        let limit = max(ConfigurationStore.minimumLimit, 2 * state.follows.length)
        if state.isBroken || state.follows.length == 0 || state.length > limit {
          try rewrite(all(), &state)
          return .success(())
        }
        if state.journal == nil { try open(&state) }
        guard let descriptor = state.journal else { throw .system(EBADF, "write \(journal)") }
        let line = JournalText.record(state.records + 1, changes)
        try DurableFile.write(line, descriptor.number, "write \(journal)")
        state.records += 1
        state.length += line.count
        state.written += 1
        return .success(())
      } catch {
        // What is in the journal now is not known, or what is in the memory is not in the journal.
        state.isBroken = true
        return .failure(error)
      }
    }
    try result.get()
  }

  /// Begins an empty journal for the present file.
  private func open(_ state: inout State) throws(SoftDPUError) {
    let header = JournalText.header(follows: state.follows)
    // Renamed by `write`: what has the journal's name is whole.
    try DurableFile.write(header, to: journal)
    try adopt(&state, header.count)
  }

  private func adopt(_ state: inout State, _ length: Int) throws(SoftDPUError) {
    let number = unsafe Glibc.open(journal, O_WRONLY | O_APPEND | O_CLOEXEC)
    guard number >= 0 else { throw .system(errno, "open \(journal)") }
    state.journal = Descriptor(number)
    state.length = length
    state.records = 0
    state.isBroken = false
  }

  /// Replaces file and journal by a new file and an empty journal.
  ///
  /// At any moment there is a file with the journal that follows it, or a new file, and beside the old journal the new
  /// one, which tells that the old one is in the file.
  private func rewrite(_ value: JSONValue, _ state: inout State) throws(SoftDPUError) {
    let bytes = value.serialize() + [0x0A]
    let follows = JournalText.Fingerprint(bytes)
    let header = JournalText.header(follows: follows)
    let next = "\(journal).new"
    try DurableFile.write(header, to: next)
    try DurableFile.write(bytes, to: file)
    guard unsafe rename(next, journal) == 0 else {
      state.isBroken = true
      throw .system(errno, "write \(journal)")
    }
    try DurableFile.syncDirectory(directory)
    state.follows = follows
    try adopt(&state, header.count)
    state.durable = state.written
  }

  /// Calls `body` when everything that has been written down until now is on disk, or with the reason why it is not.
  func whenDurable(_ body: @escaping @Sendable (SoftDPUError?) -> Void) {
    let (isDurable, begins) = state.withLock { state -> (Bool, Bool) in
      guard state.durable < state.written else { return (true, false) }
      state.waiting.append((state.written, body))
      defer { state.isSyncing = true }
      return (false, !state.isSyncing)
    }
    if isDurable { return body(nil) }
    if begins { disk.async { self.syncAll() } }
  }

  /// Waits until everything that has been written down is on disk.
  func sync() throws(SoftDPUError) {
    let latch = Latch()
    let failure = Mutex<SoftDPUError?>(nil)
    whenDurable { error in
      failure.withLock { $0 = error }
      latch.open()
    }
    latch.wait()
    if let error = failure.withLock({ $0 }) { throw error }
  }

  /// Takes what is written to the disk until nobody waits any more.
  private func syncAll() {
    while true {
      let (descriptor, record) = state.withLock { ($0.journal, $0.written) }
      var failure: SoftDPUError?
      if let descriptor, fdatasync(descriptor.number) != 0 { failure = .system(errno, "write \(journal)") }
      let (ready, goesOn) = state.withLock { state -> ([@Sendable (SoftDPUError?) -> Void], Bool) in
        // A rewrite may have been faster, and has everything on disk.
        if state.durable >= record { failure = nil }
        if failure != nil { state.isBroken = true }
        state.durable = max(state.durable, record)
        let durable = state.durable
        let ready = state.waiting.filter { $0.record <= durable }.map(\.body)
        state.waiting.removeAll { $0.record <= durable }
        state.isSyncing = !state.waiting.isEmpty
        return (ready, state.isSyncing)
      }
      for body in ready { body(failure) }
      if !goesOn { return }
    }
  }

  /// Puts everything into the file and ends the journal; nothing is written any more.
  func close(all: () -> JSONValue) throws(SoftDPUError) {
    let result = state.withLock { state -> Result<Void, SoftDPUError> in
      guard !state.isClosed else { return .success(()) }
      state.isClosed = true
      do throws(SoftDPUError) {
        if state.records > 0 || state.isBroken { try rewrite(all(), &state) }
        state.journal = nil
        try remove(journal)
        return .success(())
      } catch {
        return .failure(error)
      }
    }
    try result.get()
  }
}
