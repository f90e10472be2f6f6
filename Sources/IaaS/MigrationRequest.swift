public import Kubernetes

extension BareMetalMachineMigration {
  /// A move of `machine` that somebody asked for: it goes when its machine goes.
  ///
  /// - Parameter name: one of ``name(machine:at:)`` and ``name(machine:request:)``.
  public init(
    moving machine: BareMetalMachine, name: String, targetHost: String? = nil, labels: [String: String] = [:],
    graceSeconds: Int? = nil
  ) {
    var metadata = ObjectMeta(name: name, namespace: machine.metadata.namespace)
    metadata.ownerReferences = OwnerReference(owner: machine, controller: false).map { [$0] }
    self.init(
      metadata: metadata,
      spec: Spec(
        machineName: machine.metadata.name ?? "", targetHost: targetHost,
        hostSelector: labels.isEmpty ? nil : .init(matchLabels: labels), graceSeconds: graceSeconds))
  }

  /// A name that people can read, and that is used once: the moment in milliseconds, to the base 36.
  public static func name(machine: String, at moment: MicroTimestamp) -> String {
    "\(machine)-\(String(UInt64(max(0, moment.microseconds)) / 1000, radix: 36))"
  }

  /// The name of what one request asked for, however often it is repeated.
  ///
  /// - Parameter request: the client's own id of it, as a part of an object's name can be.
  public static func name(machine: String, request: String) -> String { "\(machine)-request-\(request)" }
}
