import TestSupport
import Testing
import bmctl

@Suite("Pictures of screens")
struct ScreenshotTests {
  @Test("What does not begin as a PNG does is not taken for one")
  func size() {
    let head: [UInt8] = [0x89, 0x50, 0x4E, 0x47, 0x0D, 0x0A, 0x1A, 0x0A, 0, 0, 0, 13] + Array("IHDR".utf8)
    let png = head + [0, 0, 4, 0, 0, 0, 3, 0, 8, 2, 0, 0, 0, 1, 2, 3, 4]
    let size = PictureSize(png: png)
    #expect(size?.width == 1024 && size?.height == 768)
    #expect(PictureSize(png: Array(png.dropLast())) == nil)
    #expect(PictureSize(png: Array("<html>".utf8) + png) == nil)
    #expect(PictureSize(png: []) == nil)
  }

  @Test("A picture is not written to a terminal")
  func terminal() async throws {
    let program = try TestEnvironment.builtProduct("bmctl")
    let child = try ChildProcess("script", ["-qec", "\(program) screenshot bm-01 -o -", "/dev/null"])
    #expect(try await child.waitForExit() == .code(64))
    #expect(child.output.contains("not for a terminal"))
  }
}
