/// Which API server to talk to, and as whom.
public struct ClientConfiguration: Sendable {
  /// Where PEM text comes from.
  public enum Source: Sendable, Hashable {
    case pem(String)
    case file(String)
  }

  /// How requests prove who sends them.
  public enum Credential: Sendable {
    case none
    case token(String)
    /// A file whose content is the token; it is read again about once a minute, because it is rotated.
    case tokenFile(String)
    case basic(username: String, password: String)
    case exec(ExecPlugin)
  }

  /// A certificate and its key for TLS client authentication.
  public struct ClientCertificate: Sendable, Hashable {
    public var chain: Source
    public var key: Source

    public init(chain: Source, key: Source) {
      self.chain = chain
      self.key = key
    }
  }

  /// Acting as somebody else; the API server checks whether this is allowed.
  public struct Impersonation: Sendable, Hashable {
    public var user: String
    public var groups: [String]

    public init(user: String, groups: [String] = []) {
      self.user = user
      self.groups = groups
    }
  }

  /// The URL of the API server, such as `https://10.0.0.1:6443`.
  public var server: String
  /// The authorities that may sign the server's certificate; nil for those of the system.
  public var certificateAuthority: Source?
  /// Accept any certificate. Only for tests of one's own.
  public var insecureSkipTLSVerify = false
  /// The name that the server's certificate must carry, where it differs from the one in the URL.
  public var tlsServerName: String?
  public var credential: Credential = .none
  public var clientCertificate: ClientCertificate?
  public var impersonation: Impersonation?
  /// The namespace of the context; `default` where it names none.
  public var namespace = "default"

  /// Requests per second that this client allows itself, and how many at once after a pause.
  public var queriesPerSecond: Double = 50
  public var burst: Int = 100
  /// How long a request other than a watch may take.
  public var requestTimeout: Duration = .seconds(30)
  /// After how long without any byte a watch is given up and resumed. Servers send a bookmark about once a minute.
  public var watchIdleTimeout: Duration = .seconds(180)
  /// The longest answer that is read, in bytes.
  public var maximumResponseBytes: Int = 256 << 20
  /// The longest event of a watch that is read, in bytes.
  public var maximumEventBytes: Int = 16 << 20
  public var userAgent = "ycloud"

  public init(server: String) { self.server = server }
}

/// Neither tokens nor passwords nor keys appear where a configuration is printed.
extension ClientConfiguration: CustomStringConvertible, CustomDebugStringConvertible, CustomReflectable {
  public var description: String { "\(server) (namespace \(namespace), \(credential))" }
  public var debugDescription: String { description }
  public var customMirror: Mirror { Mirror(self, children: ["description": description]) }
}

extension ClientConfiguration.Credential: CustomStringConvertible, CustomDebugStringConvertible, CustomReflectable {
  public var description: String {
    switch self {
    case .none: "no token"
    case .token: "a token"
    case .tokenFile(let path): "the token in \(path)"
    case .basic(let username, _): "user \(username)"
    case .exec(let plugin): "the plugin \(plugin.command)"
    }
  }
  public var debugDescription: String { description }
  public var customMirror: Mirror { Mirror(self, children: ["description": description]) }
}

/// A program that prints credentials (`client.authentication.k8s.io`).
public struct ExecPlugin: Sendable, Hashable {
  public var apiVersion: String
  public var command: String
  public var arguments: [String]
  public var environment: [String: String]
  /// What to tell a user who does not have the program.
  public var installHint: String?
  /// Whether the plugin is told about the cluster in `KUBERNETES_EXEC_INFO`.
  public var provideClusterInfo: Bool
  /// Where relative commands that contain a slash are looked up: the folder of the kubeconfig.
  public var directory: String?

  public init(
    apiVersion: String, command: String, arguments: [String] = [], environment: [String: String] = [:],
    installHint: String? = nil, provideClusterInfo: Bool = false, directory: String? = nil
  ) {
    self.apiVersion = apiVersion
    self.command = command
    self.arguments = arguments
    self.environment = environment
    self.installHint = installHint
    self.provideClusterInfo = provideClusterInfo
    self.directory = directory
  }
}
