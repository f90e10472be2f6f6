/// The numbers of NVM Express (Base 1.4, NVMe over Fabrics 1.1) that the target uses.
enum NVMe {
  static let discoveryNQN = "nqn.2014-08.org.nvmexpress.discovery"
  static let version: UInt32 = 0x0001_0400
  static let allNamespaces: UInt32 = 0xFFFF_FFFF

  enum Admin {
    static let getLogPage: UInt8 = 0x02
    static let identify: UInt8 = 0x06
    static let abort: UInt8 = 0x08
    static let setFeatures: UInt8 = 0x09
    static let getFeatures: UInt8 = 0x0A
    static let asyncEventRequest: UInt8 = 0x0C
    static let keepAlive: UInt8 = 0x18
    static let fabrics: UInt8 = 0x7F
  }

  enum IO {
    static let flush: UInt8 = 0x00
    static let write: UInt8 = 0x01
    static let read: UInt8 = 0x02
    static let compare: UInt8 = 0x05
    static let writeZeroes: UInt8 = 0x08
    static let datasetManagement: UInt8 = 0x09
  }

  enum Fabrics {
    static let propertySet: UInt8 = 0x00
    static let connect: UInt8 = 0x01
    static let propertyGet: UInt8 = 0x04
    static let disconnect: UInt8 = 0x08
  }

  enum Property {
    static let capabilities: UInt32 = 0x00
    static let version: UInt32 = 0x08
    static let configuration: UInt32 = 0x14
    static let status: UInt32 = 0x1C
  }

  enum Feature {
    static let arbitration: UInt8 = 0x01
    static let powerManagement: UInt8 = 0x02
    static let temperatureThreshold: UInt8 = 0x04
    static let errorRecovery: UInt8 = 0x05
    static let volatileWriteCache: UInt8 = 0x06
    static let numberOfQueues: UInt8 = 0x07
    static let writeAtomicity: UInt8 = 0x0A
    static let asyncEventConfiguration: UInt8 = 0x0B
    static let keepAliveTimer: UInt8 = 0x0F
    static let hostIdentifier: UInt8 = 0x81
  }

  enum LogPage {
    static let errors: UInt8 = 0x01
    static let health: UInt8 = 0x02
    static let firmware: UInt8 = 0x03
    static let changedNamespaces: UInt8 = 0x04
    static let commandEffects: UInt8 = 0x05
    static let discovery: UInt8 = 0x70
  }

  /// Status codes with their type: the field of the completion without its phase bit.
  enum Status {
    static let success: UInt16 = 0
    static let invalidOpcode: UInt16 = 0x01
    static let invalidField: UInt16 = 0x02
    static let dataTransferError: UInt16 = 0x04
    static let internalError: UInt16 = 0x06
    static let abortedByRequest: UInt16 = 0x07
    static let invalidNamespace: UInt16 = 0x0B
    static let sequenceError: UInt16 = 0x0C
    static let invalidSGLLength: UInt16 = 0x0F
    static let invalidSGLType: UInt16 = 0x11
    static let writeProtected: UInt16 = 0x20
    static let transientTransportError: UInt16 = 0x22
    static let lbaOutOfRange: UInt16 = 0x80
    static let capacityExceeded: UInt16 = 0x81
    static let asyncEventLimit: UInt16 = 1 << 8 | 0x05
    static let invalidLogPage: UInt16 = 1 << 8 | 0x09
    static let featureNotChangeable: UInt16 = 1 << 8 | 0x0E
    static let incompatibleFormat: UInt16 = 1 << 8 | 0x80
    /// Of I/O commands, for which the same number has another meaning.
    static let conflictingAttributes: UInt16 = 1 << 8 | 0x80
    static let controllerBusy: UInt16 = 1 << 8 | 0x81
    static let invalidParameters: UInt16 = 1 << 8 | 0x82
    static let invalidHost: UInt16 = 1 << 8 | 0x84
    static let writeFault: UInt16 = 2 << 8 | 0x80
    static let unrecoveredRead: UInt16 = 2 << 8 | 0x81
    static let compareFailure: UInt16 = 2 << 8 | 0x85
    /// The host need not try again.
    static let doNotRetry: UInt16 = 1 << 14
  }
}

/// The PDUs of NVMe/TCP (NVMe TCP Transport 1.0, section 3.6).
enum NVMeTCP {
  enum PDU {
    static let initializeRequest: UInt8 = 0x00
    static let initializeResponse: UInt8 = 0x01
    static let hostTerminate: UInt8 = 0x02
    static let controllerTerminate: UInt8 = 0x03
    static let command: UInt8 = 0x04
    static let response: UInt8 = 0x05
    static let hostData: UInt8 = 0x06
    static let controllerData: UInt8 = 0x07
    static let readyToTransfer: UInt8 = 0x09
  }

  enum Flag {
    static let headerDigest: UInt8 = 1 << 0
    static let dataDigest: UInt8 = 1 << 1
    static let last: UInt8 = 1 << 2
    static let success: UInt8 = 1 << 3
  }

  /// Why a connection is ended (FES).
  enum FatalError {
    static let invalidHeader: UInt16 = 1
    static let sequence: UInt16 = 2
    static let headerDigest: UInt16 = 3
    static let outOfRange: UInt16 = 4
    static let unsupported: UInt16 = 6
  }

  static let commonLength = 8
  static let initializeLength = 128
  static let commandLength = 72
  static let dataHeaderLength = 24
  static let digestLength = 4
}
