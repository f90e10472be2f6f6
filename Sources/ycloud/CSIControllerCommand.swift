public import ArgumentParser
import Kubernetes
import Logging
public import Storage
import Telemetry
import WebServer

/// `ycloud csi-controller`: volumes for claims.
struct CSIControllerCommand: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "csi-controller",
    abstract: "Makes, clones, fills and removes the volumes of claims, as files that share their extents.",
    discussion: """
      The pool is a folder on XFS with reflink or on btrfs; the volume of a claim is the sparse file \
      volumes/pvc-UID.img in it. A pool has one csi-controller at a time.
      """)

  @Option(help: "The pool's folder.") var pool: String
  @Option(help: "The cluster's kubeconfig; without it $KUBECONFIG, ~/.kube/config or the pod's account.")
  var kubeconfig: String?
  @Option(help: "The context of the kubeconfig.") var context: String?
  @Option(help: "How many times the pool's size may be promised to volumes.") var overcommitRatio = 10.0
  @Option(help: "With less than this share of the pool free, in percent, nothing new is made.") var reservePercent = 5.0
  @Option(help: "Receive the content of volumes here, HOST:PORT; without it uploads are off.") var uploadListen: String?
  @Option(help: "The address under which clients reach it; without it the one it listens on.") var uploadUrl: String?
  @Option(help: "The certificate chain for uploads (PEM). Without it, plain HTTP, on a loopback address only.")
  var uploadTlsCert: String?
  @Option(help: "The private key of that certificate (PEM).") var uploadTlsKey: String?
  @Option(help: "The authority of that certificate (PEM), published for clients.") var uploadCa: String?
  @Option(help: "Seconds for which a volume that belongs to nobody is kept.") var orphanGrace = 60
  @Option(help: "How many volumes are worked on at the same time.") var workers = 8
  @Option(
    help: ArgumentHelp(
      "Snapshots (snapshot.storage.k8s.io/v1): all, or contents where the cluster has a snapshot-controller, or none.",
      valueName: "role"))
  var snapshots = SnapshotRole.all
  @OptionGroup var requestRate: RequestRate
  @Option(help: "The namespace of the lease and of the ConfigMap 'upload'.") var namespace = "ycloud-system"
  @Flag(inversion: .prefixedNo, help: "Take part in the election of a leader.") var leaderElection = true
  @Option(help: "Serve /metrics, /healthz and /readyz here, HOST:PORT; empty for not.") var metricsAddress = ""
  @Option(help: "trace, debug, info, notice, warning, error or critical.") var logLevel = Logger.Level.info

  func validate() throws {
    guard overcommitRatio >= 1, overcommitRatio.isFinite else {
      throw ValidationError("--overcommit-ratio must be at least 1.")
    }
    guard reservePercent >= 0, reservePercent < 100 else {
      throw ValidationError("--reserve-percent must be at least 0 and below 100.")
    }
    guard orphanGrace >= 1 else { throw ValidationError("--orphan-grace must be at least 1 second.") }
    guard (1...256).contains(workers) else { throw ValidationError("--workers must be 1 to 256.") }
  }

  func run() async throws {
    LoggingSetup.bootstrap(level: logLevel)
    var settings = CSIController.Settings(pool: pool)
    settings.policy = ReflinkPool.Policy(
      overcommitRatio: overcommitRatio, reserveFraction: reservePercent / 100)
    settings.upload = try uploadSettings()
    settings.orphanGrace = .seconds(orphanGrace)
    settings.workers = workers
    settings.snapshots = snapshots
    settings.systemNamespace = namespace
    settings.electsLeader = leaderElection
    settings.metricsAddress = metricsAddress
    let controller = CSIController(
      settings: settings, registry: MetricsRegistry(), logger: Logger(label: "csi-controller"))
    try await controller.run(
      requestRate.applied(to: try .load(kubeconfigPath: kubeconfig, context: context), role: "csi-controller"))
  }

  private func uploadSettings() throws -> CSIController.UploadSettings? {
    guard let uploadListen else { return nil }
    let listen = try HostAndPort(uploadListen, flag: "--upload-listen")
    var tls: TLSFiles?
    switch (uploadTlsCert, uploadTlsKey) {
    case (let certificate?, let key?): tls = TLSFiles(certificateChain: certificate, privateKey: key)
    case (nil, nil):
      guard ["127.0.0.1", "::1", "localhost"].contains(listen.host) else {
        throw ValidationError(
          "--upload-listen \(uploadListen) needs --upload-tls-cert and --upload-tls-key: tokens must not travel in clear."
        )
      }
    default: throw ValidationError("--upload-tls-cert and --upload-tls-key go together.")
    }
    return CSIController.UploadSettings(
      host: listen.host, port: listen.port, url: uploadUrl, tls: tls, certificateAuthority: uploadCa)
  }
}

extension SnapshotRole: ExpressibleByArgument {}
