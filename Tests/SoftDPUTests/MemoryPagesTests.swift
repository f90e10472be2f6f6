import SoftDPU
import Testing

/// What an unmap of a disk in memory gives back to the system.
@Suite struct MemoryPagesTests {
  @Test("No page is given back that the range covers only in part", arguments: [UInt(4096), 16384, 65536])
  func partsOfPagesStay(page: UInt) {
    let base = 16 * page
    let end = base + 3 * page
    // As on a kernel with large pages: a range of 4 KiB blocks that begins on a page and ends inside one.
    expect(base, end - 4096 + 512, base, end - page)
    expect(base + 512, end, base + page, end)
    expect(base, end, base, end)

    func expect(_ first: UInt, _ last: UInt, _ firstPage: UInt, _ lastPage: UInt) {
      let pages = wholePages(first..<last, size: page)
      #expect(pages?.lowerBound == firstPage)
      #expect(pages?.upperBound == lastPage)
    }
  }

  @Test("Less than a page gives nothing back", arguments: [UInt(4096), 16384, 65536])
  func lessThanAPage(page: UInt) {
    let base = 16 * page
    #expect(wholePages(base..<base + page - 512, size: page) == nil)
    #expect(wholePages(base + 512..<base + page + 512, size: page) == nil)
  }
}
