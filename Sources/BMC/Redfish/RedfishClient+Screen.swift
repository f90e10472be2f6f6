package import JSON
import NIOHTTP1

#if canImport(FoundationEssentials)
  import FoundationEssentials
#else
  import Foundation
#endif

extension RedfishClient {
  func screenshot() async throws -> ScreenPicture {
    try await call("take a picture of the screen", limit: limits.screenshot) { operation in
      let (_, system, _) = try await self.system(operation: operation)
      guard RedfishPower.state(of: system) != .off else {
        throw BMCError(
          .rejected, operation: operation, message: "the server is off, so that its screen shows nothing",
          isStateRefusal: true)
      }
      let target = try await self.screenshotTarget(system, operation: operation)
      let answer = try await self.send(
        .POST, target, body: ["FileType": .string(RedfishScreen.fileType)], answerBytes: RedfishScreen.answerBytes,
        operation: operation)
      guard answer.isSuccess else {
        let what = "the BMC answered \(answer.status) to \(RedfishScreen.action)"
        switch answer.status {
        case 404, 405, 501: throw self.error(.unsupported, answer, operation: operation, what)
        case _ where answer.isStateRefusal:
          throw self.error(.rejected, answer, operation: operation, isStateRefusal: true, what)
        default: throw self.failure(answer, operation: operation, asking: RedfishScreen.action)
        }
      }
      do throws(ScreenPicture.Problem) { return try RedfishScreen.picture(answer.body) } catch {
        throw BMCError(
          .protocolError, operation: operation, message: "the BMC gave no picture of the screen: \(error)",
          cause: error)
      }
    }
  }

  /// Where the action is, as the BMC's own documents say: paths differ from one to the next.
  private func screenshotTarget(_ system: JSONValue, operation: String) async throws -> String {
    for manager in (system.at("Links", "ManagedBy")?.arrayValue ?? []).prefix(4) {
      guard let path = manager.link(), let document = try await optional(path, operation: operation),
        let service = document.link("Links", "Oem", "Dell", "DellLCService"),
        let found = try await optional(service, operation: operation)
      else { continue }
      if let target = RedfishScreen.target(found) { return target }
    }
    throw BMCError(
      .unsupported, operation: operation,
      message: "the BMC does not offer \(RedfishScreen.action), and Redfish itself has no word for it; use the serial "
        + "console")
  }
}

/// The decisions about pictures of screens, apart from any I/O.
///
/// The Redfish standard has none. What is asked for is an action of Dell's (iDRAC9), whose resource the manager
/// links to (`Links.Oem.Dell.DellLCService`).
package enum RedfishScreen {
  package static let action = "DellLCService.ExportServerScreenShot"
  /// The whole screen as it is now; others are a small one and that of the last crash.
  package static let fileType = "ServerScreenShot"
  /// A picture in Base64, and what stands around it.
  static let answerBytes = ScreenPicture.bytesMax / 3 * 4 + (64 << 10)

  /// The action's address in the document of the service; nil where it is not offered.
  package static func target(_ service: JSONValue) -> String? {
    let action = service.at("Actions", "#\(action)")
    if let allowed = action?["FileType@Redfish.AllowableValues"]?.arrayValue {
      guard allowed.contains(where: { $0.stringValue == fileType }) else { return nil }
    }
    guard let target = action?["target"]?.stringValue, target.isRedfishPath else { return nil }
    return target
  }

  /// The picture in the action's answer.
  package static func picture(_ answer: JSONValue?) throws(ScreenPicture.Problem) -> ScreenPicture {
    guard let text = answer?["ServerScreenShotFile"]?.stringValue else {
      throw ScreenPicture.Problem(description: "the answer has no ServerScreenShotFile")
    }
    // Some break the text into lines.
    guard let data = Data(base64Encoded: text, options: .ignoreUnknownCharacters) else {
      throw ScreenPicture.Problem(description: "it is not Base64")
    }
    return try ScreenPicture(png: Array(data))
  }
}
