/// The numbers of the NBD protocol (NetworkBlockDevice/nbd, doc/proto.md): fixed newstyle, structured replies, metadata
/// contexts.
package enum NBD {
  static let initMagic: UInt64 = 0x4E42_444D_4147_4943
  static let optionMagic: UInt64 = 0x4948_4156_454F_5054
  static let optionReplyMagic: UInt64 = 0x0003_E889_0455_65A9
  static let requestMagic: UInt32 = 0x2560_9513
  static let simpleReplyMagic: UInt32 = 0x6744_6698
  static let structuredReplyMagic: UInt32 = 0x668E_33EF

  /// Handshake flags, of the server and of the client.
  static let fixedNewstyle: UInt16 = 1 << 0
  static let noZeroes: UInt16 = 1 << 1

  enum Option: UInt32 {
    case exportName = 1
    case abort = 2
    case list = 3
    case startTLS = 5
    case info = 6
    case go = 7
    case structuredReply = 8
    case listMetaContext = 9
    case setMetaContext = 10
  }

  enum OptionReply {
    static let ack: UInt32 = 1
    static let server: UInt32 = 2
    static let info: UInt32 = 3
    static let metaContext: UInt32 = 4
    static let unsupported: UInt32 = 1 << 31 | 1
    static let policy: UInt32 = 1 << 31 | 2
    static let invalid: UInt32 = 1 << 31 | 3
    static let tlsRequired: UInt32 = 1 << 31 | 5
    static let unknown: UInt32 = 1 << 31 | 6
    static let tooBig: UInt32 = 1 << 31 | 9
  }

  enum Info {
    static let export: UInt16 = 0
    static let name: UInt16 = 1
    static let blockSize: UInt16 = 3
  }

  enum TransmissionFlags {
    static let hasFlags: UInt16 = 1 << 0
    static let readOnly: UInt16 = 1 << 1
    static let sendFlush: UInt16 = 1 << 2
    static let sendFUA: UInt16 = 1 << 3
    static let sendTrim: UInt16 = 1 << 5
    static let sendWriteZeroes: UInt16 = 1 << 6
    static let sendDF: UInt16 = 1 << 7
    static let canMultiConn: UInt16 = 1 << 8
    static let sendFastZero: UInt16 = 1 << 11
  }

  enum Command {
    static let read: UInt16 = 0
    static let write: UInt16 = 1
    static let disconnect: UInt16 = 2
    static let flush: UInt16 = 3
    static let trim: UInt16 = 4
    static let writeZeroes: UInt16 = 6
    static let blockStatus: UInt16 = 7
  }

  enum CommandFlag {
    static let fua: UInt16 = 1 << 0
    static let noHole: UInt16 = 1 << 1
    static let doNotFragment: UInt16 = 1 << 2
    static let requestOne: UInt16 = 1 << 3
    static let fastZero: UInt16 = 1 << 4
  }

  enum ReplyType {
    static let none: UInt16 = 0
    static let offsetData: UInt16 = 1
    static let blockStatus: UInt16 = 5
    static let error: UInt16 = 1 << 15 | 1
  }
  static let replyDone: UInt16 = 1

  enum ErrorNumber {
    static let permission: UInt32 = 1
    static let io: UInt32 = 5
    static let memory: UInt32 = 12
    static let invalid: UInt32 = 22
    static let space: UInt32 = 28
    static let overflow: UInt32 = 75
    static let unsupported: UInt32 = 95
  }

  /// The only metadata context: which ranges are holes, and which read as zeros.
  static let allocationContext = "base:allocation"
  static let allocationContextID: UInt32 = 1
  static let stateHole: UInt32 = 1 << 0
  static let stateZero: UInt32 = 1 << 1

  /// The longest option, request and name in bytes. 32 MiB is what clients expect a server to take.
  static let maximumOptionLength: UInt32 = 8192
  static let maximumPayload: UInt32 = 32 << 20
  static let maximumNameLength = 4096
  static let requestLength = 28
}
