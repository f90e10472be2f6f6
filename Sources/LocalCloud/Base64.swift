#if canImport(FoundationEssentials)
  import FoundationEssentials
#else
  import Foundation
#endif

enum Base64 {
  static func encode(_ text: String) -> String {
    Data(text.utf8).base64EncodedString()
  }
}
