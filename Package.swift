// swift-tools-version: 6.2
import PackageDescription

/// Settings shared by every Swift target: Swift 6 language mode, explicit `any`,
/// explicit imports, and warnings as errors.
let common: [SwiftSetting] = [
  .swiftLanguageMode(.v6),
  .enableUpcomingFeature("ExistentialAny"),
  .enableUpcomingFeature("MemberImportVisibility"),
  .enableUpcomingFeature("InternalImportsByDefault"),
  .treatAllWarnings(as: .error),
]

/// The data plane touches guest memory; every unsafe expression there is marked.
let dataPlane: [SwiftSetting] = common + [.strictMemorySafety()]

let logging = Target.Dependency.product(name: "Logging", package: "swift-log")
let argumentParser = Target.Dependency.product(name: "ArgumentParser", package: "swift-argument-parser")
let grpcCore = Target.Dependency.product(name: "GRPCCore", package: "grpc-swift-2")
let grpcTransport = Target.Dependency.product(name: "GRPCNIOTransportHTTP2Posix", package: "grpc-swift-nio-transport")
let grpcProtobuf = Target.Dependency.product(name: "GRPCProtobuf", package: "grpc-swift-protobuf")
let protobuf = Target.Dependency.product(name: "SwiftProtobuf", package: "swift-protobuf")
let httpClient = Target.Dependency.product(name: "AsyncHTTPClient", package: "async-http-client")
let httpTypes = Target.Dependency.product(name: "HTTPTypes", package: "swift-http-types")
let hummingbird = Target.Dependency.product(name: "Hummingbird", package: "hummingbird")
let hummingbirdCore = Target.Dependency.product(name: "HummingbirdCore", package: "hummingbird")
let hummingbirdTLS = Target.Dependency.product(name: "HummingbirdTLS", package: "hummingbird")
let nioCore = Target.Dependency.product(name: "NIOCore", package: "swift-nio")
let nioPosix = Target.Dependency.product(name: "NIOPosix", package: "swift-nio")
let nioHTTP1 = Target.Dependency.product(name: "NIOHTTP1", package: "swift-nio")
let nioWebSocket = Target.Dependency.product(name: "NIOWebSocket", package: "swift-nio")
let nioSSL = Target.Dependency.product(name: "NIOSSL", package: "swift-nio-ssl")
let subprocess = Target.Dependency.product(name: "Subprocess", package: "swift-subprocess")
let crypto = Target.Dependency.product(name: "Crypto", package: "swift-crypto")
let swiftASN1 = Target.Dependency.product(name: "SwiftASN1", package: "swift-asn1")
let x509 = Target.Dependency.product(name: "X509", package: "swift-certificates")
let systemPackage = Target.Dependency.product(name: "SystemPackage", package: "swift-system")
let yams = Target.Dependency.product(name: "Yams", package: "Yams")

func room(_ name: String, _ dependencies: [Target.Dependency], settings: [SwiftSetting] = common) -> Target {
  .target(name: name, dependencies: dependencies, swiftSettings: settings)
}

func tests(_ name: String, _ dependencies: [Target.Dependency] = []) -> Target {
  .testTarget(
    name: "\(name)Tests", dependencies: [.byName(name: name), "TestSupport"] + dependencies,
    swiftSettings: common)
}

let package = Package(
  name: "ycloud",
  products: [
    .executable(name: "ycloud", targets: ["ycloud"]),
    .executable(name: "bmctl", targets: ["bmctl"]),
    .library(name: "Kubernetes", targets: ["Kubernetes"]),
    .library(name: "Reconciler", targets: ["Reconciler"]),
  ],
  dependencies: [
    .package(url: "https://github.com/apple/swift-argument-parser", from: "1.8.2"),
    .package(url: "https://github.com/apple/swift-asn1", from: "1.7.4"),
    .package(url: "https://github.com/apple/swift-certificates", from: "1.21.1"),
    .package(url: "https://github.com/apple/swift-crypto", from: "4.5.2"),
    .package(url: "https://github.com/apple/swift-http-types", from: "1.8.0"),
    .package(url: "https://github.com/apple/swift-log", from: "1.16.2"),
    .package(url: "https://github.com/apple/swift-nio", from: "2.101.2"),
    .package(url: "https://github.com/apple/swift-nio-ssl", from: "2.37.6"),
    .package(url: "https://github.com/apple/swift-system", from: "1.8.1"),
    .package(url: "https://github.com/apple/swift-protobuf", from: "1.39.0"),
    .package(url: "https://github.com/grpc/grpc-swift-2", from: "2.4.3"),
    .package(url: "https://github.com/grpc/grpc-swift-nio-transport", from: "2.9.2"),
    .package(url: "https://github.com/grpc/grpc-swift-protobuf", from: "2.4.1"),
    .package(url: "https://github.com/hummingbird-project/hummingbird", from: "2.28.1", traits: []),
    .package(url: "https://github.com/jpsim/Yams", from: "6.2.2"),
    .package(url: "https://github.com/swift-server/async-http-client", from: "1.37.0", traits: []),
    .package(url: "https://github.com/swiftlang/swift-subprocess", from: "1.0.2", traits: []),
  ],
  targets: [
    // Seams to the kernel and small foundations.
    .target(
      name: "CLinux",
      linkerSettings: [.linkedLibrary("uring"), .linkedLibrary("ssl"), .linkedLibrary("crypto")]),
    room("Deadlines", []),
    room("Files", [], settings: dataPlane),
    room("JSON", []),
    room("JSONRPC", ["CLinux", "JSON"]),
    room("Telemetry", [logging]),
    room(
      "WebServer",
      ["Telemetry", hummingbird, hummingbirdCore, hummingbirdTLS, httpTypes, logging, nioCore, nioPosix, nioSSL]),

    // The simulated hardware; knows nothing of Kubernetes.
    room("SoftDPU", ["Files", "JSON", "CLinux", "JSONRPC", "Telemetry", logging], settings: dataPlane),
    room(
      "SoftHost",
      [
        "Deadlines", "Files", "JSON", "CLinux", "JSONRPC", "Telemetry", "WebServer", hummingbird, httpTypes, logging,
        nioCore, nioPosix, subprocess, systemPackage,
      ]),

    // What a DPU and a BMC offer, over their own protocols.
    .target(
      name: "OPI", dependencies: [grpcCore, grpcProtobuf, protobuf],
      swiftSettings: [.swiftLanguageMode(.v6), .enableUpcomingFeature("InternalImportsByDefault")]),
    room("DPU", ["JSON", "CLinux", "JSONRPC", "OPI", grpcCore, grpcTransport, logging, protobuf]),
    room(
      "OPIBridge",
      ["DPU", "Files", "JSON", "JSONRPC", "OPI", "Telemetry", grpcCore, grpcTransport, logging, protobuf]),
    room("BMC", ["Deadlines", "JSON", httpClient, logging, nioCore, nioHTTP1, nioSSL, subprocess, systemPackage]),

    // Kubernetes, without any domain.
    room(
      "Kubernetes",
      [
        "Deadlines", "JSON", "Telemetry", httpClient, logging, nioCore, nioHTTP1, nioPosix, nioSSL, nioWebSocket,
        subprocess, systemPackage, yams,
      ]),
    room("Reconciler", ["Deadlines", "JSON", "Kubernetes", "Telemetry", "WebServer", logging]),

    // Domains.
    room("IaaS", ["JSON", "Kubernetes"]),
    room(
      "Storage",
      [
        "JSON", "CLinux", "IaaS", "Kubernetes", "Reconciler", "Telemetry", "WebServer", hummingbird, httpTypes, logging,
        nioCore, nioPosix, subprocess, systemPackage,
      ]),
    room(
      "BareMetal",
      [
        "Files", "JSON", "BMC", "CLinux", "DPU", "IaaS", "Kubernetes", "Reconciler", "Telemetry", logging, nioCore,
        subprocess, systemPackage, yams,
      ]),
    room(
      "MachineAPI",
      [
        "BareMetal", "BMC", "IaaS", "JSON", "Kubernetes", "Telemetry", "WebServer", crypto, logging, nioCore, nioHTTP1,
        nioPosix, nioSSL, nioWebSocket, swiftASN1, x509,
      ]),
    room(
      "Fleet",
      [
        "BareMetal", "DPU", "IaaS", "JSON", "Kubernetes", "Reconciler", "SoftHost", "Telemetry", logging, nioCore,
        nioHTTP1,
        nioPosix, nioSSL, subprocess,
      ]),
    room(
      "LocalCloud",
      ["Files", "JSON", "BMC", "CLinux", "IaaS", "Kubernetes", "Telemetry", logging, subprocess, systemPackage, yams]),

    // Programs.
    .executableTarget(
      name: "ycloud",
      dependencies: [
        "BareMetal", "BMC", "CLinux", "DPU", "Fleet", "IaaS", "JSON", "JSONRPC", "Kubernetes", "LocalCloud",
        "MachineAPI",
        "OPIBridge", "Reconciler", "SoftDPU", "SoftHost", "Storage", "Telemetry", "WebServer", argumentParser, logging,
      ], swiftSettings: common),
    .executableTarget(
      name: "bmctl",
      dependencies: [
        "CLinux", "IaaS", "JSON", "Kubernetes", argumentParser, httpClient, logging, nioCore, nioHTTP1, nioSSL,
        subprocess, systemPackage, yams,
      ],
      swiftSettings: common),

    // A guest's side of vhost-user-blk, for tests and for the comparison with other targets.
    .target(
      name: "VhostFrontend", dependencies: ["CLinux"], path: "Benchmarks/VhostFrontend", swiftSettings: common),
    // What the measuring programs share.
    .target(
      name: "BenchmarkSupport", dependencies: ["CLinux"], path: "Benchmarks/Support", swiftSettings: common),
    .executableTarget(
      name: "nvme-bench",
      dependencies: ["BenchmarkSupport", "CLinux", "JSON", "JSONRPC", "SoftDPU", argumentParser, logging],
      path: "Benchmarks/nvme-bench", swiftSettings: common),
    // A control plane, the real controllers and a simulated fleet: for its measuring program and its tests.
    .target(
      name: "FleetCloud", dependencies: ["IaaS", "JSON", "Kubernetes", "TestSupport", logging],
      path: "Benchmarks/FleetCloud", swiftSettings: common),
    .executableTarget(
      name: "fleet-bench",
      dependencies: ["FleetCloud", "IaaS", "JSON", "Kubernetes", "TestSupport", argumentParser, logging],
      path: "Benchmarks/fleet-bench", swiftSettings: common),
    .executableTarget(
      name: "vhost-bench",
      dependencies: [
        "BenchmarkSupport", "VhostFrontend", "CLinux", "JSON", "JSONRPC", "SoftDPU", argumentParser, logging,
      ],
      path: "Benchmarks/vhost-bench", swiftSettings: common),

    // Tests stand beside the module they test.
    .target(
      name: "TestSupport", dependencies: ["CLinux", logging, subprocess, systemPackage], path: "Tests/TestSupport",
      swiftSettings: common),
    tests("Deadlines"),
    tests("Files"),
    tests("JSON"),
    tests("JSONRPC", ["JSON"]),
    tests("Telemetry"),
    tests("WebServer", ["Telemetry", hummingbird, logging]),
    // Bytes of strangers for the data plane: in the tests with a seed, and under libFuzzer with `make fuzz`.
    .target(
      name: "FuzzHarness", dependencies: ["CLinux", "JSON", "JSONRPC", "SoftDPU", "VhostFrontend", logging],
      path: "Tests/Fuzz/Harness", swiftSettings: common),
    tests("SoftDPU", ["CLinux", "FuzzHarness", "JSON", "JSONRPC", "Telemetry", "VhostFrontend", logging]),
    tests("SoftHost", ["BMC", "CLinux", "JSON", "JSONRPC", "Telemetry", httpClient, logging, nioCore]),
    tests("DPU", ["JSON", "JSONRPC", "SoftDPU", logging]),
    .testTarget(
      name: "OPIBridgeTests",
      dependencies: [
        "DPU", "JSON", "JSONRPC", "OPI", "OPIBridge", "SoftDPU", "Telemetry", "TestSupport", grpcCore, logging,
        protobuf,
      ], exclude: ["Python"], swiftSettings: common),
    .target(
      name: "TestBMC", dependencies: ["BMC", "JSON", "SoftHost", "Telemetry", "TestSupport", "WebServer", logging],
      path: "Tests/TestBMC", swiftSettings: common),
    tests("BMC", ["JSON", "SoftHost", "Telemetry", "TestBMC", "WebServer", hummingbird, logging]),
    tests("Kubernetes", ["JSON", logging, yams]),
    tests("Reconciler", ["JSON", "Kubernetes", logging]),
    tests("IaaS", ["JSON", "Kubernetes", yams]),
    tests("Storage", ["CLinux", "IaaS", "JSON", "Kubernetes", "Telemetry", logging, nioCore]),
    tests("BareMetal", ["BMC", "DPU", "IaaS", "JSON", "Kubernetes", logging, yams]),
    .testTarget(
      name: "MachineAPITests",
      dependencies: [
        "BMC", "IaaS", "JSON", "Kubernetes", "MachineAPI", "Telemetry", "TestSupport", logging, nioCore, nioHTTP1,
        nioPosix,
      ], exclude: ["Python"], swiftSettings: common),
    .testTarget(
      name: "Acceptance",
      dependencies: ["BMC", "JSON", "SoftHost", "TestBMC", "TestSupport", logging, subprocess, systemPackage],
      path: "Tests/Acceptance", swiftSettings: common),
    tests("Fleet", ["BMC", "BareMetal", "DPU", "FleetCloud", "IaaS", "Kubernetes", "SoftHost", "Telemetry", logging]),
    tests("bmctl", ["IaaS", "JSON", "Kubernetes", yams]),
    tests("LocalCloud", ["BMC", "JSON", "Kubernetes", logging]),
  ]
)

// `make fuzz` and `make sanitize` build the data plane alone, with another compiler's checks: the whole would take long.
if let purpose = Context.environment["YCLOUD_CHECKS"] {
  let rooms: Set = [
    "CLinux", "Files", "JSON", "JSONRPC", "Telemetry", "SoftDPU", "VhostFrontend", "FuzzHarness", "TestSupport",
    "SoftDPUTests", "JSONRPCTests", "FilesTests",
  ]
  package.products = []
  package.targets.removeAll { !rooms.contains($0.name) }
  if purpose == "fuzz" {
    // libFuzzer has the main function.
    package.targets.append(
      .executableTarget(
        name: "ycloud-fuzz", dependencies: ["FuzzHarness"], path: "Tests/Fuzz/Main", swiftSettings: common))
  } else if purpose == "thread" {
    package.targets.append(.target(name: "MutexForThreadSanitizer", path: "Tests/Sanitizers/Mutex"))
    for target in package.targets where target.isTest { target.dependencies.append("MutexForThreadSanitizer") }
  }
}
