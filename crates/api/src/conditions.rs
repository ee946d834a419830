//! Types and reasons of the conditions in `CacheDataset.status.conditions`.
//!
//! Workers report reasons of their own too (`OriginUnreachable`, `AccessDenied`, ...); those pass through unchanged.

/// Types, in the order in which they are listed.
pub mod types {
    /// Pods that use the claim can read now.
    pub const READY: &str = "Ready";
    /// The origin was listed and every member has the catalog.
    pub const SNAPSHOT_TAKEN: &str = "SnapshotTaken";
    /// Every selected node has a worker that is ready.
    pub const WORKERS_READY: &str = "WorkersReady";
    /// All data of the snapshot is cached.
    pub const PRELOADED: &str = "Preloaded";

    /// All of them.
    pub const ALL: [&str; 4] = [READY, SNAPSHOT_TAKEN, WORKERS_READY, PRELOADED];
}

/// Reasons that the operator sets.
pub mod reasons {
    /// Of `Ready`. It also takes the reason of what it waits for.
    pub mod ready {
        /// Pods can read.
        pub const READY: &str = "Ready";
        /// A claim of the dataset's name exists and is not Larder's.
        pub const CLAIM_NOT_OURS: &str = "ClaimNotOurs";
        /// The claim is not bound yet.
        pub const CLAIM_PENDING: &str = "ClaimPending";
        /// The API server refuses the claim or its volume.
        pub const CLAIM_REFUSED: &str = "ClaimRefused";
        /// The operator cannot see what there is.
        pub const UNSEEN: &str = "Unseen";
        /// The dataset is being deleted.
        pub const DELETING: &str = "Deleting";
        /// Deletion waits for pods that use the claim.
        pub const IN_USE: &str = "InUse";
    }
    /// Of `SnapshotTaken`.
    pub mod snapshot {
        /// Taken, and on all members.
        pub const TAKEN: &str = "Taken";
        /// No worker is ready to list the origin.
        pub const WAITING_FOR_WORKERS: &str = "WaitingForWorkers";
        /// A worker is listing the origin.
        pub const LISTING_RUNNING: &str = "ListingRunning";
        /// The listing failed and the worker gave no reason.
        pub const LISTING_FAILED: &str = "ListingFailed";
        /// The members fetch the catalog.
        pub const DISTRIBUTING: &str = "CatalogDistributing";
    }
    /// Of `WorkersReady`.
    pub mod workers {
        /// All are.
        pub const ALL_READY: &str = "AllReady";
        /// Some are not yet.
        pub const STARTING: &str = "WorkersStarting";
        /// Some cannot start.
        pub const FAILING: &str = "WorkersFailing";
        /// A ready worker does not answer the operator.
        pub const UNREACHABLE: &str = "WorkerUnreachable";
        /// The API server refuses what the workers are made of.
        pub const REFUSED: &str = "WorkersRefused";
        /// The node selector and tolerations leave no node.
        pub const NO_NODES_MATCH: &str = "NoNodesMatch";
        /// The tier is not one of the administrator's.
        pub const TIER_UNKNOWN: &str = "TierUnknown";
        /// The folder of a `file://` source lies beneath none that the administrator allows.
        pub const FOLDER_NOT_ALLOWED: &str = "FolderNotAllowed";
        /// The Secret with credentials is missing.
        pub const SECRET_NOT_FOUND: &str = "SecretNotFound";
        /// The Secret has no usable keys.
        pub const SECRET_KEY_MISSING: &str = "SecretKeyMissing";
        /// The ConfigMap with the CA, or its key, is missing.
        pub const CA_NOT_FOUND: &str = "CaNotFound";
    }
    /// Of `Preloaded`.
    pub mod preload {
        /// All data is cached.
        pub const COMPLETE: &str = "Complete";
        /// Data is being fetched.
        pub const RUNNING: &str = "PreloadRunning";
        /// Some files could not be fetched and the worker gave no reason.
        pub const FAILED: &str = "PreloadFailed";
        /// No file of the snapshot is what the spec asks for.
        pub const NOTHING_MATCHES: &str = "NothingMatches";
        /// There is no snapshot to preload yet.
        pub const WAITING_FOR_SNAPSHOT: &str = "WaitingForSnapshot";
        /// The spec asks for none.
        pub const NOT_REQUESTED: &str = "NotRequested";
    }
}
