public import Kubernetes

/// A server with a DPU that machines can be placed on (`baremetalhosts.iaas.yusur.io`, cluster-scoped).
///
/// The meaning of every field is in the schema, `deploy/crds/baremetalhosts.yaml`.
public struct BareMetalHost: KubernetesObject, Hashable {
  public static let definition = ResourceDefinition(
    group: Names.group, version: "v1", kind: "BareMetalHost", plural: "baremetalhosts", namespaced: false)

  public var apiVersion: String?
  public var kind: String?
  public var metadata: ObjectMeta
  public var spec: Spec
  public var status: Status?

  public init(metadata: ObjectMeta, spec: Spec, status: Status? = nil) {
    apiVersion = Self.definition.apiVersion
    kind = Self.definition.kind
    self.metadata = metadata
    self.spec = spec
    self.status = status
  }
}

extension BareMetalHost {
  public struct Spec: Codable, Sendable, Hashable {
    public var bmc: BMC
    public var dpu: DPU
    public var taints: [Taint]
    public var maintenance: Bool
    /// Whether the machines that are there are to be given to other hosts.
    public var drain: Bool
    /// An operator's word that neither the server nor its DPU has power.
    public var powerCut: Bool

    public init(
      bmc: BMC, dpu: DPU, taints: [Taint] = [], maintenance: Bool = false, drain: Bool = false, powerCut: Bool = false
    ) {
      self.bmc = bmc
      self.dpu = dpu
      self.taints = taints
      self.maintenance = maintenance
      self.drain = drain
      self.powerCut = powerCut
    }

    public init(from decoder: any Decoder) throws {
      let values = try decoder.container(keyedBy: CodingKeys.self)
      bmc = try values.decode(BMC.self, forKey: .bmc)
      dpu = try values.decode(DPU.self, forKey: .dpu)
      taints = try values.decodeIfPresent([Taint].self, forKey: .taints) ?? []
      maintenance = try values.decodeIfPresent(Bool.self, forKey: .maintenance) ?? false
      drain = try values.decodeIfPresent(Bool.self, forKey: .drain) ?? false
      powerCut = try values.decodeIfPresent(Bool.self, forKey: .powerCut) ?? false
    }
  }

  public struct BMC: Codable, Sendable, Hashable {
    public var address: String
    public var credentialsSecretRef: CredentialsReference
    /// Certificates in PEM, Base64 once more as the API has bytes.
    public var caBundle: String?
    public var insecureSkipVerify: Bool

    public init(
      address: String, credentialsSecretRef: CredentialsReference, caBundle: String? = nil,
      insecureSkipVerify: Bool = false
    ) {
      self.address = address
      self.credentialsSecretRef = credentialsSecretRef
      self.caBundle = caBundle
      self.insecureSkipVerify = insecureSkipVerify
    }

    public init(from decoder: any Decoder) throws {
      let values = try decoder.container(keyedBy: CodingKeys.self)
      address = try values.decode(String.self, forKey: .address)
      credentialsSecretRef = try values.decode(CredentialsReference.self, forKey: .credentialsSecretRef)
      caBundle = try values.decodeIfPresent(String.self, forKey: .caBundle)
      insecureSkipVerify = try values.decodeIfPresent(Bool.self, forKey: .insecureSkipVerify) ?? false
    }
  }

  public struct CredentialsReference: Codable, Sendable, Hashable {
    public var name: String
    public var namespace: String

    public init(name: String, namespace: String = Names.systemNamespace) {
      self.name = name
      self.namespace = namespace
    }

    public init(from decoder: any Decoder) throws {
      let values = try decoder.container(keyedBy: CodingKeys.self)
      name = try values.decode(String.self, forKey: .name)
      namespace = try values.decodeIfPresent(String.self, forKey: .namespace) ?? Names.systemNamespace
    }
  }

  public struct DPU: Codable, Sendable, Hashable {
    public var node: String

    public init(node: String) { self.node = node }
  }

  public struct Taint: Codable, Sendable, Hashable {
    public var key: String
    public var value: String?
    public var effect: String?

    public init(key: String, value: String? = nil, effect: String? = "NoSchedule") {
      self.key = key
      self.value = value
      self.effect = effect
    }
  }
}
