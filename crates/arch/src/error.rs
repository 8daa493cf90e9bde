//! Why a header is no model that llama.cpp v0.5.0 would load.

use vramfit_ggml::GraphError;

/// Why a model cannot be sized. Every variant names the key, tensor or step at fault.
#[derive(Clone, PartialEq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A key that the architecture cannot do without.
    #[error("the key '{key}' is missing")]
    MissingKey {
        /// Full name of the key.
        key: String,
    },
    /// A key of another type than llama.cpp reads.
    #[error("the key '{key}' is a {found}, expected {expected}")]
    KeyType {
        /// Full name of the key.
        key: String,
        /// What llama.cpp reads there.
        expected: &'static str,
        /// What the file holds.
        found: String,
    },
    /// A value that cannot be right.
    #[error("the key '{key}' is {value}, which is not between {min} and {max}")]
    KeyRange {
        /// Full name of the key.
        key: String,
        /// What the file says.
        value: i64,
        /// Least value.
        min: i64,
        /// Largest value.
        max: i64,
    },
    /// An array with fewer values than the model has layers.
    #[error("the key '{key}' has {found} values for {needed} layers")]
    KeyLength {
        /// Full name of the key.
        key: String,
        /// Values in the file.
        found: usize,
        /// Layers of the model.
        needed: usize,
    },
    /// No `general.architecture`.
    #[error("the key 'general.architecture' is missing: this file does not say what model it is")]
    NoArchitecture,
    /// An architecture whose graph vramfit does not know.
    #[error("architecture '{name}' is not known: there are bounds of what it takes, but no graph")]
    UnknownArchitecture {
        /// As the file names it.
        name: String,
    },
    /// A name that llama.cpp v0.5.0 knows, but loads no model of.
    #[error(
        "unsupported model architecture: '{name}': llama.cpp v0.5.0 knows the name and has no graph for it, so that nothing is loaded: use another file"
    )]
    UnsupportedArchitecture {
        /// As the file names it.
        name: String,
    },
    /// A multimodal projector where a model should be.
    #[error(
        "CLIP cannot be used as main model: this file is a multimodal projector, use it beside its model (--mmproj)"
    )]
    ProjectorAsModel,
    /// A file that is no multimodal projector.
    #[error(
        "'{architecture}' is the architecture of a model, not of a multimodal projector (clip)"
    )]
    NoProjector {
        /// As the file names it.
        architecture: String,
    },
    /// A tensor that the architecture cannot do without.
    #[error("the tensor '{name}' is missing")]
    MissingTensor {
        /// Name of the tensor.
        name: String,
    },
    /// A tensor that `-sm tensor` has no way to share out: an abort.
    #[error("llama.cpp would abort: '{name}' cannot be shared out over devices; use -sm layer")]
    CannotBeSliced {
        /// Name of the tensor.
        name: String,
    },
    /// A tensor that llama.cpp would refuse or ignore because it does not belong.
    #[error("the tensor '{name}' does not belong to architecture '{architecture}'")]
    UnexpectedTensor {
        /// Name of the tensor.
        name: String,
        /// Architecture of the model.
        architecture: String,
    },
    /// llama.cpp, or the graph that is known of it, does not give a draft what it reads of this model.
    #[error(
        "llama.cpp would abort: no draft can read the layers of architecture '{architecture}' that this one reads: choose another draft model, or --spec-type draft-simple"
    )]
    NotTapped {
        /// Architecture of the target.
        architecture: String,
    },
    /// A draft that is nothing without its target.
    #[error(
        "this draft borrows {what} of its target: give the target as the model and this file with -md"
    )]
    NeedsTarget {
        /// What it borrows.
        what: &'static str,
    },
    /// An adapter's key says that it is not one for this model.
    #[error("not an adapter for this model: '{key}' is '{found}', not '{expected}'")]
    AdapterKey {
        /// Full name of the key.
        key: &'static str,
        /// What the model needs.
        expected: String,
        /// What the adapter has; empty if nothing.
        found: String,
    },
    /// A tensor of an adapter that llama.cpp would refuse.
    #[error("the adapter's '{name}' {what}")]
    AdapterTensor {
        /// Name of the tensor.
        name: String,
        /// What is wrong with it.
        what: &'static str,
    },
    /// Shapes that do not fit together: ggml would abort.
    #[error("no graph can be made of these tensors and settings: {0}")]
    Graph(#[from] GraphError),
}

/// Result of this crate.
pub type Result<T> = std::result::Result<T, Error>;
