import Glibc
import JSON
import JSONRPC
import TestSupport
import Testing
import VhostFrontend

@Suite struct BlockRequestTests {
  private func pattern(_ seed: UInt64, _ count: Int) -> [UInt8] {
    var generator = SeededGenerator(seed: seed)
    return generator.bytes(count)
  }

  @Test(arguments: Target.Place.allCases)
  func readsWhatWasWritten(place: Target.Place) async throws {
    let target = try Target(place)
    let frontend = try await target.frontend()
    for (sector, length) in [(0, 4096), (8, 512), (9, 1536), (1000, 65536), (16383, 512)] {
      let data = pattern(UInt64(sector), length)
      let written = try frontend.perform(VhostFrontend.writeType, sector: UInt64(sector), write: data)
      #expect(written.status == statusOK)
      #expect(written.written == 1)
      let read = try frontend.perform(VhostFrontend.readType, sector: UInt64(sector), read: length)
      #expect(read.status == statusOK)
      #expect(read.written == UInt32(length) + 1)
      #expect(read.data == data)
      #expect(try frontend.perform(VhostFrontend.flushType).status == statusOK)
      #expect(target.bytes(at: sector * 512, count: length) == data)
    }
  }

  @Test(arguments: Target.Place.allCases)
  func refusesWhatLiesOutside(place: Target.Place) async throws {
    let target = try Target(place)
    let frontend = try await target.frontend()
    let end = UInt64(8 << 20) / 512
    for (sector, length) in [(end, 512), (end - 1, 1024), (.max, 512), (.max >> 9, 4096), (1 << 54, 4096), (0, 100)] {
      #expect(try frontend.perform(VhostFrontend.readType, sector: sector, read: length).status == statusError)
      let data = [UInt8](repeating: 1, count: length)
      #expect(try frontend.perform(VhostFrontend.writeType, sector: sector, write: data).status == statusError)
    }
    #expect(try frontend.perform(77).status == statusUnsupported)
    #expect(try frontend.perform(VhostFrontend.readType, sector: 0, read: 512).status == statusOK)
  }

  @Test(arguments: Target.Place.allCases)
  func punchesHolesAndWritesZeroes(place: Target.Place) async throws {
    let target = try Target(place)
    let frontend = try await target.frontend()
    let data = pattern(1, 65536)
    #expect(try frontend.perform(VhostFrontend.writeType, sector: 0, write: data).status == statusOK)
    #expect(try frontend.perform(VhostFrontend.flushType).status == statusOK)

    #expect(try frontend.perform(VhostFrontend.discardType, write: range(8, 16, 0)).status == statusOK)
    #expect(
      try frontend.perform(VhostFrontend.writeZeroesType, write: range(32, 8, 0) + range(48, 1, 1)).status == statusOK)
    var expected = data
    for sector in Array(8..<24) + Array(32..<40) + [48] {
      expected.replaceSubrange(sector * 512..<sector * 512 + 512, with: repeatElement(0, count: 512))
    }
    #expect(try frontend.perform(VhostFrontend.readType, sector: 0, read: 65536).data == expected)
    #expect(target.bytes(at: 0, count: 65536) == expected)
  }

  @Test func refusesBadRangesOfDiscard() async throws {
    let target = try Target()
    let frontend = try await target.frontend()
    let end = UInt64(8 << 20) / 512
    #expect(try frontend.perform(VhostFrontend.discardType, write: range(end, 1, 0)).status == statusError)
    #expect(try frontend.perform(VhostFrontend.discardType, write: range(.max, 1, 0)).status == statusError)
    #expect(try frontend.perform(VhostFrontend.discardType, write: range(0, .max, 0)).status == statusError)
    #expect(try frontend.perform(VhostFrontend.discardType, write: range(0, 1, 1)).status == statusUnsupported)
    #expect(try frontend.perform(VhostFrontend.writeZeroesType, write: range(0, 1, 2)).status == statusUnsupported)
    #expect(try frontend.perform(VhostFrontend.discardType, write: [1, 2, 3]).status == statusError)
    let many = (0..<17).flatMap { range(UInt64($0), 1, 0) }
    #expect(try frontend.perform(VhostFrontend.discardType, write: many).status == statusError)
    #expect(try frontend.perform(VhostFrontend.discardType).status == statusError)
  }

  private func range(_ sector: UInt64, _ sectors: UInt32, _ flags: UInt32) -> [UInt8] {
    (0..<8).map { UInt8(truncatingIfNeeded: sector >> ($0 * 8)) }
      + (0..<4).map { UInt8(truncatingIfNeeded: sectors >> ($0 * 8)) }
      + (0..<4).map { UInt8(truncatingIfNeeded: flags >> ($0 * 8)) }
  }

  @Test func answersItsName() async throws {
    let target = try Target()
    let frontend = try await target.frontend()
    let answer = try frontend.perform(VhostFrontend.identityType, read: 20)
    #expect(answer.status == statusOK)
    #expect(answer.data == Array("disk".utf8) + [UInt8](repeating: 0, count: 16))
  }

  @Test func describesItself() async throws {
    let target = try Target(.disk, megabytes: 3)
    let frontend = try await target.frontend()
    let configuration = try frontend.configuration()
    #expect(Array(configuration[0..<8]) == [0, 0x18, 0, 0, 0, 0, 0, 0])
    #expect(Array(configuration[12..<16]) == [126, 0, 0, 0])
    #expect(Array(configuration[20..<24]) == [0, 2, 0, 0])
    // FLUSH, TOPOLOGY, MQ, DISCARD, WRITE_ZEROES, indirect descriptors, event index, version 1; not read-only.
    for bit in [9, 10, 12, 13, 14, 28, 29, 32] { #expect(frontend.features & 1 << UInt64(bit) != 0) }
    #expect(frontend.features & 1 << 5 == 0)
  }

  @Test func keepsAReadOnlyVolumeAsItIs() async throws {
    let target = try Target()
    try await target.createVolume()
    try await target.createController(readOnly: true)
    let frontend = try VhostFrontend(path: target.socket)
    try frontend.start()
    #expect(frontend.features & 1 << 5 != 0)
    let data = [UInt8](repeating: 7, count: 512)
    #expect(try frontend.perform(VhostFrontend.writeType, write: data).status == statusError)
    #expect(try frontend.perform(VhostFrontend.discardType, write: range(0, 1, 0)).status == statusError)
    #expect(try frontend.perform(VhostFrontend.readType, read: 512).data == [UInt8](repeating: 0, count: 512))
  }

  @Test(arguments: Target.Place.allCases, [true, false])
  func servesManyRequestsOnSeveralQueues(place: Target.Place, hasEventIndex: Bool) async throws {
    let target = try Target(place, megabytes: 16, reactors: 2)
    let frontend = try await target.frontend(queues: 4, slotLength: 4096, wanted: hasEventIndex ? ~0 : ~(1 << 29))
    var generator = SeededGenerator(seed: 5)
    // Each slot owns one block: what is read must be what that slot wrote last.
    var expected: [[UInt8]] = Array(repeating: Array(repeating: 0, count: 42), count: 4)
    for round in 0..<50 {
      await Task.yield()
      let isWrite = round % 2 == 0
      for (index, queue) in frontend.queues.enumerated() {
        for slot in 0..<queue.slots {
          if isWrite {
            expected[index][slot] = UInt8.random(in: 0...255, using: &generator)
            queue.data(slot).copyBytes(from: repeatElement(expected[index][slot], count: 4096))
          }
          queue.submit(
            slot: slot, type: isWrite ? VhostFrontend.writeType : VhostFrontend.readType,
            sector: UInt64((index * 42 + slot) * 8), length: 4096, writable: !isWrite)
        }
        queue.kick()
      }
      for (index, queue) in frontend.queues.enumerated() {
        var back = 0
        while back < queue.slots {
          queue.reap { head, _ in
            let slot = Int(head) / 3
            back += 1
            #expect(queue.status(slot) == statusOK)
            if !isWrite { #expect(queue.data(slot).allSatisfy { $0 == expected[index][slot] }) }
          }
          if back < queue.slots { try #require(queue.wait(milliseconds: 10_000)) }
        }
      }
    }
  }
}
