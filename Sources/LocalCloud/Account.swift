/// Someone who may use the API server, known by a client certificate. What each may do is in `deploy/rbac/`.
struct Account: Sendable, Hashable {
  /// Names the certificate and the kubeconfig.
  var name: String
  var user: String
  var groups: [String] = []

  static let administrator = Account(name: "admin", user: "admin", groups: ["system:masters"])
  // Its controllers act with this one account, and each of them would need rights of its own: the volume binder writes
  // claims, the garbage collector deletes whatever has lost its owner.
  static let controllerManager = Account(
    name: "kube-controller-manager", user: "system:kube-controller-manager", groups: ["system:masters"])
  static let volumeController = Account(name: "csi-controller", user: "ycloud:csi-controller")
  static let machineController = Account(name: "bm-controller", user: "ycloud:bm-controller")
  static let machineAPI = Account(name: "bm-api", user: "ycloud:bm-api")

  /// Each DPU has an account of its own, which can read the boot data of its own server only.
  static func handler(_ host: String) -> Account {
    Account(name: "bm-handler-\(host)", user: "ycloud:bm-handler:\(host)", groups: ["ycloud:bm-handlers"])
  }

  static func all(hosts: [String]) -> [Account] {
    [administrator, controllerManager, volumeController, machineController, machineAPI] + hosts.map(handler)
  }

  /// A kubeconfig for this account, with the keys inside, so that the one file can be copied elsewhere.
  static func kubeconfig(
    cloud: String, server: String, authority: String, certificate: String, key: String, user: String
  ) -> String {
    """
    apiVersion: v1
    kind: Config
    current-context: \(cloud)
    clusters:
    - name: \(cloud)
      cluster:
        server: \(server)
        certificate-authority-data: \(Base64.encode(authority))
    contexts:
    - name: \(cloud)
      context:
        cluster: \(cloud)
        user: "\(user)"
    users:
    - name: "\(user)"
      user:
        client-certificate-data: \(Base64.encode(certificate))
        client-key-data: \(Base64.encode(key))

    """
  }
}
