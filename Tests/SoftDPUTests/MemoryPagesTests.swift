import SoftDPU
import Testing

/// What an unmap of a disk in memory gives back to the system.
@Suite struct MemoryPagesTests {
  @Test("No page is given back that the range covers only in part", arguments: [UInt(4096), 16384, 65536])
  func partsOfPagesStay(page: UInt) throws {
    // As on a kernel with 64 KiB pages: a range of 4 KiB blocks that begins on a page and ends inside one.
    let base = 16 * page
    #expect(wholePages(base..<base + 2 * page + 4096, size: page) == base..<base + 2 * page + (page == 4096 ? page : 0))
    #expect(wholePages(base + 512..<base + 3 * page, size: page) == base + page..<base + 3 * page)
    #expect(wholePages(base..<base + page, size: page) == base..<base + page)
    for (first, length) in [(base, page - 512), (base + 512, page), (base + 512, 2 * page - 1024)] {
      #expect(wholePages(first..<first + length, size: page) == nil)
    }
  }
}
