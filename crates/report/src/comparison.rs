//! Several engines' answers for one model, side by side.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::document::VerdictWord;
use crate::schema::SCHEMA_COMPARE;

/// A comparison. All sizes are in bytes.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, JsonSchema)]
#[non_exhaustive]
pub struct Comparison {
    /// Name and version of this document's layout: `vramfit.compare/1`. Keys are only ever added.
    pub schema: String,
    /// The model's file.
    pub path: String,
    /// Its name in Ollama's store, if it was found there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub store_name: Option<String>,
    /// `general.architecture`.
    pub architecture: String,
    /// How the list of GPUs was understood, a line each.
    pub gpus: Vec<String>,
    /// Tokens of context over all requests.
    pub n_ctx: u64,
    /// Requests at once.
    pub parallel: u64,
    /// One an engine.
    pub sides: Vec<SideReport>,
    /// Where they part, and which term makes the difference.
    pub differences: Vec<String>,
    /// What a reader should know.
    pub notes: Vec<String>,
}

/// One engine's answer.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, JsonSchema)]
pub struct SideReport {
    /// Whose.
    pub engine: String,
    /// In one word.
    pub verdict: VerdictWord,
    /// llama.cpp's buffers to the byte, not an estimate by formula.
    pub exact: bool,
    /// One a GPU, in order.
    pub devices: Vec<SideDevice>,
}

/// One GPU's share.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
pub struct SideDevice {
    /// `CUDA0` and so on.
    pub id: String,
    /// Free as this engine sees it.
    pub free_bytes: u64,
    /// Layers there, the output layer counted.
    pub n_layers: u64,
    /// All terms.
    pub required_bytes: u64,
    /// What it is made of.
    pub terms: Vec<Term>,
}

/// A named part.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Term {
    /// Its name.
    pub name: String,
    /// Its size.
    pub bytes: u64,
}

impl Comparison {
    /// About the model at `path`; the rest is empty.
    pub fn new(path: &str, architecture: &str) -> Comparison {
        Comparison {
            schema: SCHEMA_COMPARE.to_string(),
            path: path.to_string(),
            store_name: None,
            architecture: architecture.to_string(),
            gpus: Vec::new(),
            n_ctx: 0,
            parallel: 0,
            sides: Vec::new(),
            differences: Vec::new(),
            notes: Vec::new(),
        }
    }
}

impl SideReport {
    /// A term over all GPUs.
    pub fn term(&self, name: &str) -> u64 {
        let terms = self.devices.iter().flat_map(|d| &d.terms);
        let named = terms.filter(|term| term.name == name);
        named.fold(0, |sum, term| sum.saturating_add(term.bytes))
    }

    /// Everything on GPUs.
    pub fn required_bytes(&self) -> u64 {
        let devices = self.devices.iter();
        devices.fold(0, |sum, d| sum.saturating_add(d.required_bytes))
    }

    /// Layers of each GPU: `1,48`.
    pub fn split(&self) -> String {
        let counts = self.devices.iter().map(|d| d.n_layers.to_string());
        counts.collect::<Vec<_>>().join(",")
    }
}
