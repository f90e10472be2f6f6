import Glibc

/// The command lines of ssh and scp.
package enum SSHArguments {
  package static func arguments(
    address: String, uid: String, user: String, identity: String?, port: Int, options: [String], command: [String]
  ) -> [String] {
    var arguments = common(uid: uid, identity: identity, options: options)
    if port != 22 { arguments += ["-p", "\(port)"] }
    arguments += ["-l", user, "--", address]
    return arguments + command
  }

  package static func scp(
    _ copy: SCPCopy, address: String, uid: String, user: String, identity: String?, port: Int, options: [String],
    isRecursive: Bool, preserves: Bool
  ) -> [String] {
    var arguments = common(uid: uid, identity: identity, options: options)
    if port != 22 { arguments += ["-P", "\(port)"] }
    if isRecursive { arguments.append("-r") }
    if preserves { arguments.append("-p") }
    // The colons of an address are not the one before the path.
    let host = address.contains(":") ? "[\(address)]" : address
    func text(_ end: SCPCopy.End) -> String {
      switch end {
      case .here(let path): path
      case .machine(let path): "\(user)@\(host):\(path)"
      }
    }
    return arguments + ["--"] + copy.sources.map(text) + [text(copy.target)]
  }

  /// What ssh and scp have in common: whose key the host key is, and which keys are shown.
  private static func common(uid: String, identity: String?, options: [String]) -> [String] {
    var arguments = ["-o", "HostKeyAlias=bmm-\(uid)"]
    // ssh takes the first value of an option: what the user gives counts.
    for option in options { arguments += ["-o", option] }
    arguments += ["-o", "StrictHostKeyChecking=accept-new", "-o", "CheckHostIP=no"]
    if let identity { arguments += ["-i", identity, "-o", "IdentitiesOnly=yes"] }
    return arguments
  }

  /// A status is written by others: what goes to ssh's command line must be an address and nothing else.
  package static func isAddress(_ text: String) -> Bool {
    // C's functions would stop at a zero byte, and not see what is behind it.
    guard !text.utf8.contains(0) else { return false }
    var four = in_addr()
    var six = in6_addr()
    return inet_pton(AF_INET, text, &four) == 1 || inet_pton(AF_INET6, text, &six) == 1
  }

  package static func isUser(_ text: String) -> Bool {
    guard let first = text.utf8.first, first != UInt8(ascii: "-"), text.utf8.count <= 64 else { return false }
    return text.utf8.allSatisfy {
      ($0 | 0x20 >= UInt8(ascii: "a") && $0 | 0x20 <= UInt8(ascii: "z"))
        || ($0 >= UInt8(ascii: "0") && $0 <= UInt8(ascii: "9")) || "._-".utf8.contains($0)
    }
  }
}

/// What `bmctl scp` copies: between here and one machine. Pure.
package struct SCPCopy: Sendable, Hashable {
  package enum End: Sendable, Hashable {
    /// A file here, written so that scp takes it for nothing else.
    case here(String)
    /// A path in the machine.
    case machine(String)
  }

  package struct Problem: Error, Sendable, Hashable {
    package var message: String
  }

  package var machine: String
  package var sources: [End]
  package var target: End

  /// Reads the arguments, the last of which is the target.
  package static func parse(_ arguments: [String]) -> Result<SCPCopy, Problem> {
    guard arguments.count >= 2 else {
      return .failure(Problem(message: "Say what to copy and where to: bmctl scp FILE MACHINE:PATH"))
    }
    var machine: String?
    var ends: [End] = []
    for argument in arguments {
      guard !argument.isEmpty else { return .failure(Problem(message: "A path is empty.")) }
      guard let (name, path) = split(argument) else {
        ends.append(.here(local(argument)))
        continue
      }
      guard !name.contains("@") else {
        return .failure(Problem(message: "'\(argument)' has a user name in it; give it with --user."))
      }
      guard MachineSubresources.isName(name) else {
        return .failure(
          Problem(message: "'\(name)' of '\(argument)' is no name of a machine; write ./\(argument) for a file here."))
      }
      guard machine == nil || machine == name else {
        return .failure(
          Problem(
            message: "Only one machine can take part: '\(machine ?? "")' and '\(name)' are two; copy by way of here."))
      }
      machine = name
      ends.append(.machine(path))
    }
    guard let machine, let target = ends.popLast() else {
      return .failure(Problem(message: "No path is in a machine; write it as MACHINE:PATH."))
    }
    for source in ends {
      switch (source, target) {
      case (.here, .machine), (.machine, .here): continue
      case (.here, .here):
        return .failure(Problem(message: "The target is here: then all that is copied has to be in the machine."))
      case (.machine, .machine):
        return .failure(Problem(message: "Source and target are in \(machine): bmctl ssh \(machine) -- cp ..."))
      }
    }
    return .success(SCPCopy(machine: machine, sources: ends, target: target))
  }

  /// The part before a colon that no slash stands before, and the one behind it; nil for a file here.
  private static func split(_ argument: String) -> (name: String, path: String)? {
    let bytes = argument.utf8
    guard let colon = bytes.firstIndex(of: UInt8(ascii: ":")), !bytes[..<colon].contains(UInt8(ascii: "/")) else {
      return nil
    }
    return (String(argument[..<colon]), String(argument[bytes.index(after: colon)...]))
  }

  /// A name that begins with a dash, or has a colon in it, is a file all the same.
  private static func local(_ path: String) -> String {
    path.hasPrefix("/") || path.hasPrefix("./") || path.hasPrefix("../") || path == "." || path == ".."
      ? path : "./\(path)"
  }
}
