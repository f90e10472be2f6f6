import JSON
import NIOHTTP1

/// One answer of a Redfish service, body parsed where it is JSON.
struct RedfishAnswer: Sendable {
  let status: Int
  let headers: HTTPHeaders
  let body: JSONValue?

  var isSuccess: Bool { (200..<300).contains(status) }

  var etag: String? { headers.first(name: "ETag") ?? body?["@odata.etag"]?.stringValue }

  /// `Retry-After` in seconds, at most an hour. The form with a date is not used by BMCs.
  var retryAfter: Duration? {
    guard let text = headers.first(name: "Retry-After"), let seconds = Int(text), seconds >= 0 else { return nil }
    return .seconds(min(seconds, 3600))
  }

  /// The messages of a Redfish error body (DSP0266, 8.6), tolerant of the shapes BMCs give it.
  var messages: [(id: String, text: String)] {
    guard let error = body?["error"] else { return [] }
    var entries = error["@Message.ExtendedInfo"]?.arrayValue ?? []
    if let single = error["@Message.ExtendedInfo"], single.objectValue != nil { entries = [single] }
    var messages = entries.prefix(8).map { entry in
      (id: entry["MessageId"]?.stringValue ?? "", text: entry["Message"]?.stringValue ?? "")
    }
    if let text = error["message"]?.stringValue {
      messages.append((id: error["code"]?.stringValue ?? "", text: text))
    }
    return messages
  }

  /// Whether a message's identifier contains `text`, in any case.
  func hasMessage(_ text: String) -> Bool {
    let wanted = text.lowercased()
    return messages.contains { $0.id.lowercased().contains(wanted) }
  }

  /// Whether it refuses a change of power because of the state that the server is in, such as off for one that is off.
  ///
  /// Only what says so counts: with the same status codes BMCs say that they do not know the command, or that something
  /// else is under way, which may be the contrary command.
  var isStateRefusal: Bool {
    guard status == 400 || status == 409 else { return false }
    let ids = ["InvalidOperationForSystemState", "ResourceInStandby", "InvalidState"]
    let texts = ["already powered off", "already off", "already in", "current power state", "current state"]
    return ids.contains(where: hasMessage)
      || messages.contains { message in
        let text = message.text.lowercased()
        return texts.contains { text.contains($0) }
      }
  }

  /// What the BMC says, in one bounded line and without `secrets`, which a BMC might echo.
  func reason(hiding secrets: [String]) -> String {
    var seen: [String] = []
    for message in messages {
      var text = String(message.text.unicodeScalars.map { $0.value < 0x20 ? " " : Character($0) })
      for secret in secrets where !secret.isEmpty { text = text.replacing(secret, with: "<redacted>") }
      if !text.isEmpty, !seen.contains(text) { seen.append(text) }
    }
    let text = seen.joined(separator: " / ")
    return text.count > 300 ? String(text.prefix(300)) + "..." : text
  }
}

/// Reading the documents of BMCs, which send null, leave members out and mix types.
extension JSONValue {
  /// The value at a chain of members.
  func at(_ path: String...) -> JSONValue? {
    var value: JSONValue? = self
    for name in path { value = value?[name] }
    return value
  }

  /// A string that is not empty or only spaces.
  func text(_ path: String...) -> String? {
    var value: JSONValue? = self
    for name in path { value = value?[name] }
    guard let text = value?.stringValue else { return nil }
    let trimmed = text.drop { $0 == " " }
    guard !trimmed.isEmpty else { return nil }
    return String(text.prefix(256))
  }

  /// The `@odata.id` of a member, accepted only as a path on the same host.
  func link(_ path: String...) -> String? {
    var value: JSONValue? = self
    for name in path { value = value?[name] }
    guard let link = value?["@odata.id"]?.stringValue else { return nil }
    return link.isRedfishPath ? link : nil
  }
}

extension String {
  /// A path on the same host: no other host can be named by it, and no header can be smuggled in.
  var isRedfishPath: Bool {
    hasPrefix("/") && !hasPrefix("//") && utf8.count <= 1024 && utf8.allSatisfy { $0 > 0x20 && $0 < 0x7F }
  }
}
