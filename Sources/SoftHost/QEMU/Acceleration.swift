#if canImport(Glibc)
  import Glibc
#elseif canImport(Musl)
  import Musl
#endif

/// How a guest's instructions are carried out.
public enum Acceleration: String, Sendable, Hashable, CaseIterable {
  case kvm
  /// QEMU's translator: slow, but it works everywhere.
  case tcg

  /// KVM where it really works on this machine, otherwise TCG.
  public static func detect() -> Acceleration {
    let descriptor = open("/dev/kvm", O_RDWR | O_CLOEXEC)
    guard descriptor >= 0 else { return .tcg }
    close(descriptor)
    #if arch(x86_64)
      // A /dev/kvm that opens proves nothing: in some virtual machines it is there and cannot run a kernel.
      guard let info = try? TextFile.read("/proc/cpuinfo", limit: 4 << 20), cpuinfoHasVirtualization(info) else {
        return .tcg
      }
    #endif
    return .kvm
  }

  /// Whether the first processor of an x86 `/proc/cpuinfo` has AMD's or Intel's virtualization.
  package static func cpuinfoHasVirtualization(_ info: String) -> Bool {
    for line in info.split(separator: "\n") where line.hasPrefix("flags") {
      return line.split(separator: " ").contains { $0 == "svm" || $0 == "vmx" }
    }
    return false
  }
}
