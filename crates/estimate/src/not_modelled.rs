//! What vramfit has no rule for.

/// llama.cpp v0.5.0 may start with these settings, but vramfit cannot say what they take. The text names the way out.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NotModelled {
    /// What adapters add to an architecture that is not known has no bound.
    #[error(
        "adapters and control vectors of architecture '{architecture}', which is not known: leave them out"
    )]
    AdaptersOfUnknown {
        /// `general.architecture`.
        architecture: String,
    },
    /// What one of many devices holds of an architecture that is not known has no bound.
    #[error("-sm tensor of architecture '{architecture}', which is not known: use -sm layer")]
    TensorSplitOfUnknown {
        /// `general.architecture`.
        architecture: String,
    },
    /// The file has layers for multi-token prediction, but their graph is not known.
    #[error(
        "multi-token prediction by layers of architecture '{architecture}', whose graph is not known: choose another --spec-type"
    )]
    Prediction {
        /// `general.architecture`.
        architecture: String,
    },
}
