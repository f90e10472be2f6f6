/// The OData metadata document (DSP0266, "OData $metadata"): where a client finds the schemas of what the service has.
enum RedfishMetadata {
  static let path = RedfishDocuments.root + "/$metadata"

  /// The namespaces of the documents' types, by schema file. A type without version is a collection's.
  private static let schemas: [(file: String, versions: [String])] = [
    ("ActionInfo", ["v1_3_0"]), ("Chassis", ["v1_23_0"]), ("ChassisCollection", []), ("ComputerSystem", ["v1_20_0"]),
    ("ComputerSystemCollection", []), ("EthernetInterface", ["v1_9_0"]), ("EthernetInterfaceCollection", []),
    ("Manager", ["v1_18_0"]), ("ManagerCollection", []), ("Message", ["v1_1_2"]), ("Power", ["v1_7_1"]),
    ("Processor", ["v1_16_0"]), ("ProcessorCollection", []),
    // The container of the service has been in the first version ever since.
    ("ServiceRoot", ["v1_0_0", "v1_15_0"]),
    ("Session", ["v1_6_0"]), ("SessionCollection", []), ("SessionService", ["v1_1_8"]), ("Thermal", ["v1_7_1"]),
  ]

  static let document: String = {
    var lines = [
      #"<?xml version="1.0" encoding="UTF-8"?>"#,
      #"<edmx:Edmx xmlns:edmx="http://docs.oasis-open.org/odata/ns/edmx" Version="4.0">"#,
    ]
    func reference(_ file: String, _ includes: [String]) {
      lines.append(#"  <edmx:Reference Uri="http://redfish.dmtf.org/schemas/v1/\#(file)_v1.xml">"#)
      for include in includes { lines.append("    <edmx:Include \(include)/>") }
      lines.append("  </edmx:Reference>")
    }
    for schema in schemas {
      let namespaces = [schema.file] + schema.versions.map { "\(schema.file).\($0)" }
      reference(schema.file, namespaces.map { #"Namespace="\#($0)""# })
    }
    reference("RedfishExtensions", [#"Namespace="RedfishExtensions.v1_0_0" Alias="Redfish""#])
    lines += [
      "  <edmx:DataServices>",
      #"    <Schema xmlns="http://docs.oasis-open.org/odata/ns/edm" Namespace="Service">"#,
      #"      <EntityContainer Name="Service" Extends="ServiceRoot.v1_0_0.ServiceContainer"/>"#,
      "    </Schema>",
    ]
    // A vendor's types are in no schema of the DMTF's.
    for (namespace, type) in ScreenshotDocuments.types {
      lines += [
        #"    <Schema xmlns="http://docs.oasis-open.org/odata/ns/edm" Namespace="\#(namespace)">"#,
        "      \(type)", "    </Schema>",
      ]
    }
    lines += [
      "  </edmx:DataServices>", "</edmx:Edmx>", "",
    ]
    return lines.joined(separator: "\n")
  }()
}
