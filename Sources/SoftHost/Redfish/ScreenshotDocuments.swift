import JSON

#if canImport(FoundationEssentials)
  import FoundationEssentials
#else
  import Foundation
#endif

/// Pictures of the screen. Redfish has no word for them, so this is the action that real servers have (Dell's iDRAC9):
/// `DellLCService.ExportServerScreenShot`, found by the links of the manager. Pure.
enum ScreenshotDocuments {
  static let service = RedfishDocuments.manager + "/Oem/Dell/DellLCService"
  static let target = service + "/Actions/DellLCService.ExportServerScreenShot"
  /// The whole screen as it is now. iDRAC has smaller and older ones too.
  static let fileType = "ServerScreenShot"

  /// `Links.Oem` of the manager.
  static let managerLinks: JSONValue = [
    "Dell": ["@odata.type": "#DellOem.v1_3_0.DellOemLinks", "DellLCService": RedfishDocuments.link(service)]
  ]

  static let document = RedfishDocuments.resource(
    service, "DellLCService.v1_3_0.DellLCService", id: "DellLCService", name: "DellLCService",
    [
      "Description": "The part of the service of that name that takes pictures of the screen.",
      "Actions": [
        "#DellLCService.ExportServerScreenShot": [
          "target": .string(target), "FileType@Redfish.AllowableValues": [.string(fileType)],
        ]
      ],
    ])

  /// The vendor's types for the metadata: the namespace of each, and what is in it.
  static let types = [
    ("DellLCService.v1_3_0", #"<EntityType Name="DellLCService" OpenType="true"/>"#),
    ("DellOem.v1_3_0", #"<ComplexType Name="DellOemLinks" OpenType="true"/>"#),
  ]

  static func answer(_ picture: [UInt8]) -> JSONValue {
    [
      "ServerScreenShotFile": .string(Data(picture).base64EncodedString()),
      "@Message.ExtendedInfo": [
        [
          "@odata.type": "#Message.v1_1_2.Message", "MessageId": "Base.1.18.Success",
          "Message": "The request completed successfully.", "MessageSeverity": "OK", "Resolution": "None.",
          "MessageArgs": [],
        ]
      ],
    ]
  }

  static func failure(_ error: SoftHostError) -> RedfishReply {
    let message = "There is no picture of the screen: \(error.message)."
    switch error.code {
    case .conflict: return .failure(409, "OperationFailed", message)
    case .busy: return .failure(503, "ServiceTemporarilyUnavailable", message, headers: ["Retry-After": "1"])
    case .timeout, .closed:
      return .failure(503, "ServiceTemporarilyUnavailable", message, headers: ["Retry-After": "5"])
    case .configuration, .start, .refused, .file: return .failure(500, "InternalError", message)
    }
  }
}
