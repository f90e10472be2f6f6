/// What QEMU is started with. Pure: everything that depends on the machine comes in.
package struct QEMUCommandLine: Sendable, Hashable {
  package enum Architecture: String, Sendable, Hashable {
    case x86_64
    case aarch64

    /// The architecture this program was compiled for, and that its guests have.
    package static var native: Architecture {
      #if arch(arm64)
        .aarch64
      #else
        .x86_64
      #endif
    }
  }

  package let program: String
  package let arguments: [String]

  package init(
    _ configuration: ChassisConfiguration, uuid: String, acceleration: Acceleration,
    architecture: Architecture = .native
  ) {
    program = "qemu-system-\(architecture.rawValue)"
    var arguments = ["-name", "guest=\(configuration.name),debug-threads=on", "-nodefaults", "-no-user-config"]
    // Vhost-user back ends work in the guest's memory, so it must be shareable.
    let memory = configuration.memoryMiB
    arguments += ["-m", String(memory), "-object", "memory-backend-memfd,id=ram,size=\(memory)M,share=on"]
    let machine = architecture == .x86_64 ? "q35,graphics=off" : "virt,gic-version=max"
    arguments += ["-machine", "\(machine),memory-backend=ram", "-smp", String(configuration.processors)]
    arguments += QEMUCommandLine.processor(acceleration, memoryMiB: memory)
    arguments += QEMUCommandLine.firmware(configuration, architecture: architecture)
    arguments += ["-uuid", uuid]
    if architecture == .x86_64 {
      arguments += [
        "-smbios", "type=1,manufacturer=YCloud,product=SoftHost,serial=\(configuration.name),uuid=\(uuid)",
      ]
    }
    for port in 0..<configuration.ports {
      arguments += ["-device", "pcie-root-port,id=rp\(port),bus=pcie.0,chassis=\(port + 1),slot=\(port + 1)"]
    }
    var serial = "socket,id=serial0,path=\(configuration.serialSocket),server=on,wait=off"
    // The log is QEMU's own, appended: nothing is missing in it while the chassis process is away.
    if !configuration.consoleLog.isEmpty { serial += ",logfile=\(configuration.consoleLog),logappend=on" }
    arguments += ["-chardev", serial, "-serial", "chardev:serial0"]
    arguments += ["-chardev", "socket,id=monitor0,path=\(configuration.monitorSocket),server=on,wait=off"]
    arguments += ["-mon", "chardev=monitor0,mode=control"]
    arguments += ["-display", "none", "-vga", "none"] + QEMUCommandLine.screen(architecture)
    arguments += ["-rtc", "base=utc"]
    // A server that finds nothing to boot from looks again, because its disk may be plugged later.
    arguments += ["-boot", "strict=on,reboot-timeout=5000"]
    // A guest that powers off stops; the chassis then ends the process, which is what cutting the power means here.
    arguments += ["-action", "shutdown=pause,reboot=reset,panic=pause"]
    arguments += ["-S", "-daemonize", "-pidfile", configuration.pidFile]
    self.arguments = arguments
  }

  private static func processor(_ acceleration: Acceleration, memoryMiB: Int) -> [String] {
    switch acceleration {
    case .kvm: ["-accel", "kvm", "-cpu", "host"]
    // The cache of translated code may be larger than a small guest itself.
    case .tcg: ["-accel", "tcg,thread=multi,tb-size=\(memoryMiB <= 128 ? 16 : 256)", "-cpu", "max"]
    }
  }

  /// A screen that nobody looks at but who takes a picture of it.
  ///
  /// It has a place of its own on the bus, behind all that ports can take, so that they are where they are without it.
  /// Its memory bounds what a guest can show: 1920 by 1080 points in full colour.
  private static func screen(_ architecture: Architecture) -> [String] {
    switch architecture {
    case .x86_64: ["-device", "VGA,id=screen,bus=pcie.0,addr=0x1e,vgamem_mb=8"]
    // There is no text mode, and the firmware draws into memory; it takes no place on the bus.
    case .aarch64: ["-device", "ramfb,id=screen"]
    }
  }

  /// The directories where distributions keep UEFI firmware: code and the template of its variables.
  static func firmwareFiles(_ architecture: Architecture) -> (code: String, variables: String) {
    switch architecture {
    case .x86_64: ("/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd")
    case .aarch64: ("/usr/share/AAVMF/AAVMF_CODE.fd", "/usr/share/AAVMF/AAVMF_VARS.fd")
    }
  }

  /// Whether a chassis has UEFI: arm64 servers have nothing else.
  static func usesUEFI(_ configuration: ChassisConfiguration, architecture: Architecture = .native) -> Bool {
    configuration.firmware == .uefi || architecture == .aarch64
  }

  private static func firmware(_ configuration: ChassisConfiguration, architecture: Architecture) -> [String] {
    guard usesUEFI(configuration, architecture: architecture) else { return [] }
    return [
      "-drive", "if=pflash,format=raw,unit=0,readonly=on,file=\(firmwareFiles(architecture).code)",
      "-drive", "if=pflash,format=raw,unit=1,file=\(configuration.firmwareVariables)",
    ]
  }
}
