/// Namespace and name of a VolumeSnapshot.
package typealias SnapshotKey = ClaimKey

/// What the planner looks at in a VolumeSnapshot.
package struct SnapshotView: Sendable, Hashable {
  package struct Status: Sendable, Hashable {
    /// The VolumeSnapshotContent that it is bound to.
    package var contentName: String?
    package var isReady: Bool?
    /// When the snapshot was taken, in seconds since 1970.
    package var creationSeconds: Int64?
    package var restoreBytes: Int64?
    package var error: String?

    package init() {}
  }

  package var key: SnapshotKey
  package var uid: String
  package var isBeingDeleted = false
  package var finalizers: [String] = []
  package var className: String?
  /// The claim of which it is to be taken.
  package var claimName: String?
  /// The VolumeSnapshotContent of a snapshot that exists.
  package var contentName: String?
  /// The group in which the data plane has captured the volume already.
  package var group: String?
  package var status = Status()

  package init(key: SnapshotKey, uid: String) {
    self.key = key
    self.uid = uid
  }

  package var claimKey: ClaimKey? { claimName.map { ClaimKey(namespace: key.namespace, name: $0) } }
  package var missingFinalizers: [String] {
    [SnapshotNames.sourceFinalizer, SnapshotNames.boundFinalizer].filter { !finalizers.contains($0) }
  }
}

/// What the planner looks at in a VolumeSnapshotContent.
package struct ContentView: Sendable, Hashable {
  package struct Status: Sendable, Hashable {
    package var handle: String?
    /// In nanoseconds since 1970.
    package var creationTime: Int64?
    package var restoreBytes: Int64?
    package var isReady: Bool?
    package var error: String?

    package init() {}

    package init(_ snapshot: Snapshot) {
      handle = snapshot.handle.name
      creationTime = snapshot.creationTime
      restoreBytes = snapshot.sizeBytes
      isReady = true
    }
  }

  package var name: String
  package var uid: String
  package var isBeingDeleted = false
  package var hasFinalizer = true
  /// Whether its VolumeSnapshot is being deleted, so that it may go.
  package var isMarked = false
  package var driver: String
  package var deletionPolicy: String
  /// The volume of which it is to be taken, or the snapshot that exists.
  package var volumeHandle: String?
  package var snapshotHandle: String?
  package var className: String?
  /// The VolumeSnapshot that it is for; the UID is empty until they are bound.
  package var snapshotKey: SnapshotKey?
  package var snapshotUID: String?
  package var status = Status()

  package init(name: String, uid: String, driver: String, deletionPolicy: String) {
    self.name = name
    self.uid = uid
    self.driver = driver
    self.deletionPolicy = deletionPolicy
  }

  package var isTaken: Bool { status.handle != nil && status.isReady == true }

  /// The handle of the snapshot in the pool, whether it has been taken or not.
  package var handle: String? { status.handle ?? snapshotHandle ?? snapshotUID.map { "snapshot-\($0)" } }

  package func isBound(to snapshot: SnapshotView) -> Bool {
    snapshotKey == snapshot.key && snapshotUID == snapshot.uid
  }
}

/// What the planner looks at in a VolumeSnapshotClass.
package struct SnapshotClassView: Sendable, Hashable {
  package var name: String
  package var driver: String
  package var deletionPolicy: String
  package var isDefault: Bool

  package init(name: String, driver: String, deletionPolicy: String, isDefault: Bool = false) {
    self.name = name
    self.driver = driver
    self.deletionPolicy = deletionPolicy
    self.isDefault = isDefault
  }
}

/// A VolumeSnapshotContent to be made for a VolumeSnapshot.
package struct ContentDraft: Sendable, Hashable {
  package var snapshot: SnapshotKey
  package var snapshotUID: String
  package var volumeHandle: String
  package var className: String
  package var deletionPolicy: String

  package init(
    snapshot: SnapshotKey, snapshotUID: String, volumeHandle: String, className: String, deletionPolicy: String
  ) {
    self.snapshot = snapshot
    self.snapshotUID = snapshotUID
    self.volumeHandle = volumeHandle
    self.className = className
    self.deletionPolicy = deletionPolicy
  }

  package var name: String { SnapshotNames.content(snapshotUID: snapshotUID) }
}

/// Everything that is known about one VolumeSnapshot.
package struct SnapshotSituation: Sendable, Hashable {
  package var snapshot: SnapshotView
  /// The content that it is bound to or names, or the one that is made for it.
  package var content: ContentView?
  package var claim: ClaimView?
  /// The PersistentVolume of the claim, where it is one of ours.
  package var volume: PersistentVolumeView?
  /// The driver of the claim's volume, where that is known.
  package var volumeDriver: String?
  package var classes: [SnapshotClassView] = []
  /// Claims that are being made from it.
  package var restoring: [ClaimKey] = []
  /// Whether another snapshot of the claim is being taken.
  package var hasSiblings = false
  package var isUploading = false

  package init(snapshot: SnapshotView) { self.snapshot = snapshot }
}

/// Everything that is known about one VolumeSnapshotContent.
package struct ContentSituation: Sendable, Hashable {
  package var content: ContentView
  /// Whether the VolumeSnapshot that it is bound to is there.
  package var hasSnapshot = true
  /// Another content has the same snapshot in the pool.
  package var isShared = false
  /// The group that its VolumeSnapshot says it is in: the data plane has captured it together with others.
  package var group: String?
  /// What the pool has under its handle; looked up for snapshots that exist already.
  package var file: Snapshot?

  package init(content: ContentView) { self.content = content }
}
