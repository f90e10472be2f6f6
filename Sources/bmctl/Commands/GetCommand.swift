import ArgumentParser
import Glibc
import JSON
import Kubernetes

enum OutputFormat: String, CaseIterable, ExpressibleByArgument {
  case wide, json, yaml, name
}

struct GetCommand: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "get", abstract: "List machines, hosts or images.",
    discussion: """
      KIND is machines (bmm), hosts (bmh) or images; KIND/NAME works too.

        bmctl get machines -o wide
        bmctl get machine bm-01 --watch
        bmctl get hosts -o json
      """)

  @OptionGroup var connection: ConnectionOptions

  @Argument(help: "machines, hosts or images.", completion: .list(["machines", "hosts", "images"]))
  var kind: String

  @Argument(help: "Only these.", completion: Completions.names)
  var names: [String] = []

  @Option(name: .shortAndLong, help: "wide, json, yaml or name; a table where not given.")
  var output: OutputFormat?

  @Flag(name: .shortAndLong, help: "Go on and show every change.")
  var watch = false

  @Flag(name: [.customShort("A"), .long], help: "In all namespaces.")
  var allNamespaces = false

  @Option(name: [.customShort("l"), .long], help: "Only objects with these labels (key=value,...).")
  var selector: String?

  @Flag(help: "Leave the headings of the table out.")
  var noHeadings = false

  func validate() throws {
    _ = try target()
    if allNamespaces, !names.isEmpty {
      throw ValidationError("A name is unique in one namespace only: leave out --all-namespaces or the names.")
    }
    if selector != nil, !names.isEmpty { throw ValidationError("Give names or a selector, not both.") }
  }

  private func target() throws -> (Resource, [String]) {
    if let (kind, name) = Resource.split(kind) {
      guard let resource = Resource(name: kind) else { throw Self.unknown(kind) }
      return (resource, [name] + names)
    }
    guard let resource = Resource(name: kind) else { throw Self.unknown(kind) }
    return (resource, names)
  }

  static func unknown(_ kind: String) -> ValidationError {
    ValidationError("There is no kind '\(kind)': it is machines (bmm), hosts (bmh) or images.")
  }

  func run() async throws {
    let (resource, names) = try target()
    try await withConnection(connection) { connection in
      var printer = ObjectPrinter(
        resource: resource, format: output, namespaces: allNamespaces, heading: !noHeadings, single: names.count == 1,
        grows: watch)
      let selector = [resource.labelSelector, selector].compactMap { $0 }.joined(separator: ",")
      let query = ObjectQuery(
        client: connection.client, definition: resource.definition,
        namespace: resource == .hosts || allNamespaces ? nil : connection.namespace,
        labelSelector: selector.isEmpty ? nil : selector, names: names)
      if watch {
        try await query.watch { try printer.show(change: $0) }
      } else {
        let objects = try await query.objects()
        if objects.isEmpty, output == nil || output == .wide {
          Output.error(
            query.namespace.map { "There are no \(resource.rawValue) in the namespace \($0)." }
              ?? "There are no \(resource.rawValue).")
        }
        printer.show(all: objects)
      }
    }
  }
}

/// Which objects a command looks at.
struct ObjectQuery: Sendable {
  let client: KubernetesClient
  let definition: ResourceDefinition
  let namespace: String?
  let labelSelector: String?
  let names: [String]

  func objects() async throws -> [JSONValue] {
    if names.isEmpty { return try await list().items.map(\.content) }
    var objects: [JSONValue] = []
    for name in names {
      objects.append(try await client.get(definition, name: name, namespace: namespace).content)
    }
    return objects
  }

  private func list() async throws -> ObjectList<DynamicObject> {
    let field = names.count == 1 ? "metadata.name=\(names[0])" : nil
    return try await client.listAll(
      definition, namespace: namespace, labelSelector: labelSelector, fieldSelector: field)
  }

  /// Calls `body` for what there is and then for every change, for ever. A watch that the server ends is taken up where
  /// it was; one that it cannot take up begins with a new list. While the server is away it is asked again.
  func watch(_ body: (ObjectChange) throws -> Void) async throws {
    var seen: [ObjectKey: String] = [:]
    var version: String?
    var failures = 0
    var lasted = Duration.seconds(1)
    if !names.isEmpty { _ = try await objects() }
    while true {
      // A server that ends every watch at once is not asked without end.
      if lasted < .seconds(1) { try await Task.sleep(for: .seconds(1)) }
      do {
        if version == nil {
          let list = try await list()
          let objects = list.items.filter(isWanted)
          let present = Set(objects.map(\.key))
          for key in seen.keys where !present.contains(key) {
            seen[key] = nil
            try body(.deleted(namespace: key.namespace, name: key.name, last: nil))
          }
          for object in objects
          where seen.updateValue(object.resourceVersion ?? "", forKey: object.key) != object.resourceVersion {
            try body(.current(object.content))
          }
          version = list.resourceVersion
        }
        let field = names.count == 1 ? "metadata.name=\(names[0])" : nil
        let events = client.watch(
          definition, namespace: namespace, labelSelector: labelSelector, fieldSelector: field,
          resourceVersion: version ?? "")
        let start = ContinuousClock.now
        defer { lasted = start.duration(to: .now) }
        for try await event in events {
          failures = 0
          switch event {
          case .added(let object), .modified(let object):
            version = object.resourceVersion ?? version
            guard isWanted(object) else { continue }
            seen[object.key] = object.resourceVersion ?? ""
            try body(.current(object.content))
          case .deleted(let object):
            version = object.resourceVersion ?? version
            guard isWanted(object) else { continue }
            seen[object.key] = nil
            try body(.deleted(namespace: object.namespace, name: object.name ?? "", last: object.content))
          case .bookmark(let bookmark): version = bookmark
          case .error(let error):
            guard error.code == .gone || error.isTransient else { throw error }
            version = nil
          }
        }
      } catch let error as KubernetesError where error.code == .gone {
        version = nil
      } catch let error as KubernetesError where error.isTransient && !seen.isEmpty {
        failures += 1
        if failures == 1 { Output.error("The API server is away (\(error.message)); waiting for it.") }
        try await Task.sleep(for: .milliseconds(min(5000, 250 << min(failures, 5))))
      }
    }
  }

  private func isWanted(_ object: DynamicObject) -> Bool { names.isEmpty || names.contains(object.name ?? "") }
}

enum ObjectChange {
  case current(JSONValue)
  case deleted(namespace: String?, name: String, last: JSONValue?)
}

/// Prints objects in the form that the user asked for.
struct ObjectPrinter {
  let resource: Resource
  let format: OutputFormat?
  let namespaces: Bool
  let heading: Bool
  /// Whether one object was asked for by its name: it is then printed by itself, not as a list.
  let single: Bool
  private let style = Style.standardOutput()
  private var widths: [Int] = []
  private var shownHeading = false

  /// - Parameter grows: Whether rows are added later: columns then have room for what usually comes.
  init(
    resource: Resource, format: OutputFormat?, namespaces: Bool, heading: Bool, single: Bool, grows: Bool = false
  ) {
    if grows { widths = (namespaces && resource != .hosts ? [12] : []) + ResourceTable.usualWidths(resource) }
    self.resource = resource
    self.format = format
    self.namespaces = namespaces
    self.heading = heading
    self.single = single
  }

  mutating func show(all objects: [JSONValue]) {
    switch format {
    case .json, .yaml:
      if single, let object = objects.first {
        document(object)
      } else {
        document(["apiVersion": "v1", "kind": "List", "items": .array(objects)])
      }
    case .name: objects.forEach(name)
    case nil, .wide: if !objects.isEmpty { rows(objects) }
    }
  }

  mutating func show(change: ObjectChange) throws {
    switch change {
    case .current(let object):
      switch format {
      case .json: document(object)
      case .yaml:
        Output.line("---")
        document(object)
      case .name: name(object)
      case nil, .wide: rows([object])
      }
    case .deleted(let namespace, let name, let last):
      switch format {
      case .json, .yaml, .name: break
      case nil, .wide:
        var object: JSONValue = last ?? ["metadata": ["name": .string(name)]]
        object["metadata"]?["namespace"] = namespace.map { .string($0) }
        object["metadata"]?["deletionTimestamp"] = nil
        object["status"] = ["phase": "Deleted"]
        rows([object])
      }
    }
  }

  private func document(_ value: JSONValue) {
    if format == .yaml {
      Output.write(DocumentText.yaml(value), to: 1)
    } else {
      Output.line(DocumentText.json(value))
    }
  }

  private func name(_ object: JSONValue) {
    Output.line("\(resource.qualifiedName)/\(object["metadata"]?["name"]?.stringValue ?? "")")
  }

  private mutating func rows(_ objects: [JSONValue]) {
    let table = ResourceTable.table(
      resource, objects, wide: format == .wide, namespaces: namespaces, now: Clock.secondsSince1970())
    widths = table.widths(minimum: widths)
    let states = Set(table.columns.indices.filter { ["PHASE", "POWER"].contains(table.columns[$0].heading) })
    let style = style
    let lines = table.lines(heading: heading && !shownHeading, minimumWidths: widths) { index, text in
      states.contains(index) ? style.state(text) : text
    }
    shownHeading = true
    for line in lines { Output.line(line) }
  }
}

/// The computer's clock.
enum Clock {
  static func secondsSince1970() -> Double { Double(MicroTimestamp.now().microseconds) / 1_000_000 }
}

/// What a shell offers after TAB.
enum Completions {
  static let names = CompletionKind.shellCommand(
    "for kind in machines hosts images; do bmctl get $kind -o name 2>/dev/null; done | sed 's,.*/,,' | sort -u")
  static let machines = CompletionKind.shellCommand("bmctl get machines -o name 2>/dev/null | sed 's,.*/,,'")
}
