package import IaaS
import Kubernetes
package import Logging
import Reconciler
import Synchronization

#if canImport(Glibc)
  import Glibc
#elseif canImport(Musl)
  import Musl
#endif

/// Sees a guest come up, from the DPU's side: the lease that it takes, and the first ping that it answers.
///
/// It looks often only while somebody waits for a guest, and seldom otherwise; with no guest it sleeps.
package final class GuestWatcher: Sendable {
  private struct State {
    var boot: String?
    var isOn = false
    var interfaces: [BareMetalHost.Interface] = []
    /// Leases as they were when the boot began: the same line later proves nothing.
    var leasesBefore: [String: DHCPLease] = [:]
    var silentRounds = 0
    /// The MAC addresses of others that answer at the guest's addresses, by interface.
    var intruders: [String: String] = [:]
    /// Interfaces that were plugged while the guest runs are looked for as often as at its boot, for a while.
    var expectsUntil = ContinuousClock.now

    /// Takes interfaces that were plugged and unplugged in the boot under way. Returns whether there were any.
    mutating func take(_ wanted: [GuestInterface]) -> Bool {
      let before = interfaces.map { [$0.name, $0.mac] }
      guard before != wanted.map({ [$0.name, $0.mac] }) else { return false }
      let old = interfaces
      interfaces = wanted.map { interface in
        old.first { $0.name == interface.name && $0.mac == interface.mac }
          ?? BareMetalHost.Interface(name: interface.name, mac: interface.mac, address: interface.address)
      }
      intruders = intruders.filter { name, _ in wanted.contains { $0.name == name } }
      if interfaces.contains(where: { $0.leasedAt == nil }) { expectsUntil = .now + GuestWatcher.expectFor }
      return true
    }
  }

  private let bridge: String
  private let leaseFile: String
  private let logger: Logger
  private let changed: @Sendable () -> Void
  private let state = Mutex(State())
  private let news = Signal()

  private static let lookEvery: Duration = .milliseconds(100)
  private static let lookEveryLate: Duration = .milliseconds(500)
  private static let checkEvery: Duration = .seconds(30)
  /// How long an interface that was plugged into a running guest is looked for often.
  fileprivate static let expectFor: Duration = .seconds(60)
  /// How many checks in a row a guest may leave unanswered.
  private static let silentRoundsMax = 3

  package init(bridge: String, leaseFile: String, logger: Logger, changed: @escaping @Sendable () -> Void) {
    self.bridge = bridge
    self.leaseFile = leaseFile
    self.logger = logger
    self.changed = changed
  }

  /// What was seen of the guest in the boot `follow` was told about last.
  package var interfaces: [BareMetalHost.Interface] { state.withLock { $0.interfaces } }

  /// Addresses of the guest at which something else answers, for people.
  package var conflicts: [String] {
    state.withLock { state in
      state.interfaces.compactMap { interface in
        guard let intruder = state.intruders[interface.name], let address = interface.address else { return nil }
        return
          "at the address \(address) of interface \(interface.name) (\(interface.mac)) something else answers, with "
          + "the MAC address \(intruder); give one of them another address"
      }
    }
  }

  /// Says which boot to watch. The same one again changes nothing; nil means that there is no guest.
  /// - Parameters:
  ///   - isOn: False while the server is known to be off.
  ///   - known: What was reported before, which still holds if it is of the same boot.
  package func follow(
    boot: String?, isOn: Bool, interfaces: [GuestInterface],
    known: (boot: String?, interfaces: [BareMetalHost.Interface])
  ) {
    let isNew = state.withLock { state -> Bool in
      defer { state.isOn = isOn }
      guard state.boot != boot else {
        let isChanged = boot != nil && state.take(interfaces)
        return isChanged || state.isOn != isOn
      }
      state.boot = boot
      state.silentRounds = 0
      state.intruders = [:]
      state.leasesBefore = boot == nil ? [:] : readLeases()
      let reported = known.boot == boot ? known.interfaces : []
      state.interfaces = interfaces.map { interface in
        reported.first { $0.name == interface.name && $0.mac == interface.mac }
          ?? BareMetalHost.Interface(name: interface.name, mac: interface.mac, address: interface.address)
      }
      // What was leased before this process started was not seen by it.
      if known.boot == boot, state.interfaces.contains(where: { $0.leasedAt == nil }) { state.leasesBefore = [:] }
      return true
    }
    if isNew { news.signal() }
  }

  private func readLeases() -> [String: DHCPLease] {
    Files.read(leaseFile, limit: 8 << 20).map { LeaseFile.parse($0) } ?? [:]
  }

  private enum Need {
    case nothing
    case waiting
    case check
  }

  private var need: Need {
    state.withLock { state in
      guard state.boot != nil, state.isOn, !state.interfaces.isEmpty else { return .nothing }
      if state.interfaces.contains(where: { $0.leasedAt == nil }), .now < state.expectsUntil { return .waiting }
      return state.interfaces.contains { $0.reachable == true } ? .check : .waiting
    }
  }

  /// Watches until the task is cancelled.
  package func run() async throws {
    var pinger: Pinger?
    var stamp: Files.Stamp?
    var waitingSince = ContinuousClock.now
    var lastSend = ContinuousClock.now - .seconds(1)
    var lastBoot: String?
    while !Task.isCancelled {
      let boot = state.withLock { $0.boot }
      if boot != lastBoot {
        lastBoot = boot
        waitingSince = .now
        stamp = nil
      }
      switch need {
      case .nothing:
        pinger = nil
        waitingSince = .now
        await news.wait()
        continue
      case .waiting:
        do { pinger = try pinger ?? Pinger(device: bridge) } catch {
          logger.warning("cannot ping", metadata: ["error": "\(error)"])
          try await Task.sleep(for: .seconds(5))
          continue
        }
        let nowStamp = Files.stamp(leaseFile)
        if let nowStamp, stamp.map({ $0 != nowStamp }) ?? true {
          stamp = nowStamp
          takeLeases(readLeases())
        }
        note(answers: pinger?.answers() ?? [])
        let isLate = waitingSince.duration(to: .now) > .seconds(180)
        if lastSend.duration(to: .now) >= (isLate ? .seconds(1) : .milliseconds(200)) {
          lastSend = .now
          for address in addresses { pinger?.send(to: address) }
        }
        await news.wait(until: .now + (isLate ? Self.lookEveryLate : Self.lookEvery))
      case .check:
        await news.wait(until: .now + Self.checkEvery)
        guard case .check = need else { continue }
        takeLeases(readLeases())
        do { pinger = try pinger ?? Pinger(device: bridge) } catch { continue }
        _ = pinger?.answers()
        for address in addresses { pinger?.send(to: address) }
        try await Task.sleep(for: .seconds(1))
        note(check: pinger?.answers() ?? [])
      }
    }
    throw CancellationError()
  }

  private var addresses: [String] { state.withLock { $0.interfaces.compactMap(\.address) } }

  private func takeLeases(_ leases: [String: DHCPLease]) {
    let isNew = state.withLock { state -> Bool in
      var isNew = false
      for index in state.interfaces.indices {
        guard let lease = leases[state.interfaces[index].mac] else { continue }
        if state.interfaces[index].address != lease.address {
          state.interfaces[index].address = lease.address
          isNew = true
        }
        if state.interfaces[index].leasedAt == nil, state.leasesBefore[lease.mac] != lease {
          state.interfaces[index].leasedAt = .now()
          isNew = true
        }
      }
      return isNew
    }
    if isNew { changed() }
  }

  /// Takes answers in. Returns whether one of them was the guest's.
  @discardableResult
  private func note(answers: Set<String>) -> Bool {
    guard !answers.isEmpty else { return false }
    let neighbours = Files.read("/proc/net/arp").map { NeighbourTable.parse($0, device: bridge) } ?? [:]
    let (isGuest, isNew) = state.withLock { state -> (Bool, Bool) in
      let before = (state.interfaces, state.intruders)
      var isGuest = false
      for index in state.interfaces.indices {
        let name = state.interfaces[index].name
        guard let address = state.interfaces[index].address, answers.contains(address) else { continue }
        switch AnswerVerdict(for: state.interfaces[index], neighbour: neighbours[address]) {
        case .guest:
          isGuest = true
          state.intruders[name] = nil
          state.interfaces[index].reachable = true
          if state.interfaces[index].reachableAt == nil { state.interfaces[index].reachableAt = .now() }
        case .other(let mac):
          state.intruders[name] = mac
          if state.interfaces[index].reachable == true { state.interfaces[index].reachable = false }
        case .unproven: break
        }
      }
      if isGuest { state.silentRounds = 0 }
      return (isGuest, before != (state.interfaces, state.intruders))
    }
    if isNew { changed() }
    return isGuest
  }

  /// The outcome of a check of a running guest: only several unanswered ones in a row mean something.
  private func note(check answers: Set<String>) {
    guard !note(answers: answers) else { return }
    let isNew = state.withLock { state -> Bool in
      state.silentRounds += 1
      guard state.silentRounds >= Self.silentRoundsMax else { return false }
      var isNew = false
      for index in state.interfaces.indices where state.interfaces[index].reachable == true {
        state.interfaces[index].reachable = false
        isNew = true
      }
      return isNew
    }
    if isNew { changed() }
  }
}
