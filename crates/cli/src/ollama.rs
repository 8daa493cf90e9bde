//! `ollama:NAME`: a model of Ollama's store, with the defaults that its Modelfile and the `OLLAMA_*`
//! variables set. What is said on the command line goes first, then `LLAMA_ARG_*`, then the Modelfile.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use vramfit::ollama::{Name, Store, StoredModel, Variables};

use crate::low::{LowArgs, truth};

const PREFIX: &str = "ollama:";
/// What names the projector of a stored model.
pub const STORED_PROJECTOR: &str = "projector (Modelfile)";
/// What names the size of batch of a stored model.
pub const NUM_BATCH: &str = "num_batch (Modelfile)";
/// Tokens of context where nothing says how many, as everywhere in `estimate`.
const CONTEXT: u64 = 4096;

/// What Ollama's side of a call says.
#[derive(Debug, Default)]
pub struct Ollama {
    /// `OLLAMA_*`.
    pub variables: Variables,
    /// The model, where it is of the store.
    pub model: Option<StoredModel>,
    /// Lines for the reader.
    pub notes: Vec<String>,
}

impl Ollama {
    /// Finds the model that `low` names and sets the defaults. `classic` is said where the engine is
    /// Ollama's own: then the variables count for files, too. The error is one line.
    pub fn new(
        low: &mut LowArgs,
        classic: bool,
        env: &dyn Fn(&str) -> Option<OsString>,
    ) -> Result<Ollama, String> {
        let name = |path: &Path| Some(path.to_str()?.strip_prefix(PREFIX)?.to_string());
        let named = low.models.iter().find_map(|path| name(path));
        if named.is_none() && !classic {
            return Ok(Ollama::default());
        }
        let mut ollama = Ollama {
            variables: Variables::new(env).map_err(|error| error.to_string())?,
            ..Ollama::default()
        };
        if let Some(text) = named {
            if low.models.len() > 1 {
                return Err(format!(
                    "{PREFIX}{text} sets defaults of its own, so it is estimated alone; name one model at a time"
                ));
            }
            let store = Store::new(env).map_err(|error| error.to_string())?;
            let name: Name = text.parse().map_err(error_text)?;
            let model = store.find(&name).map_err(error_text)?;
            low.models = vec![model.model.clone()];
            for adapter in &model.adapters {
                low.add("lora", adapter.display().to_string(), "adapter (Modelfile)");
            }
            if let Some(projector) = model.projectors.first() {
                low.add_default("mmproj", projector.display().to_string(), STORED_PROJECTOR);
            }
            ollama.model = Some(model);
        }
        ollama.set_defaults(low);
        Ok(ollama)
    }

    fn set_defaults(&mut self, low: &mut LowArgs) {
        let variables = &self.variables;
        let parameters = self.model.as_ref().map(|model| model.parameters.clone());
        let parameters = parameters.unwrap_or_default();
        let mut set = Vec::new();
        let mut default = |id: &'static str, value: Option<String>, by: &'static str| {
            if let Some(value) = value
                && low.add_default(id, value.clone(), by)
            {
                set.push(format!("{by} {value}"));
            }
        };
        let text = |n: u64| n.to_string();
        default(
            "parallel",
            variables.num_parallel.map(text),
            "OLLAMA_NUM_PARALLEL",
        );
        for id in ["batch-size", "ubatch-size"] {
            default(id, parameters.num_batch.map(text), NUM_BATCH);
        }
        let layers = parameters.num_gpu.and_then(|n| u64::try_from(n).ok());
        default("n-gpu-layers", layers.map(text), "num_gpu (Modelfile)");
        let fused = variables.flash_attention;
        let on_off = |on: bool| if on { "on" } else { "off" }.to_string();
        default("flash-attn", fused.map(on_off), "OLLAMA_FLASH_ATTENTION");
        set.extend(context(low, parameters.num_ctx, variables.context_length));
        let is_fused = low.value("flash-attn").and_then(|said| truth(&said.text)) == Some(true);
        self.cache_type(low, is_fused, &mut set);
        set.dedup();
        if !set.is_empty() {
            self.notes
                .push(format!("set by Ollama's side: {}", set.join(", ")));
        }
        if let Some(model) = &self.model {
            let file = model.model.display();
            self.notes.push(format!("{} is {file}", model.name));
            if model.projectors.len() > 1 {
                let n = model.projectors.len();
                self.notes.push(format!(
                    "of its {n} projectors llama.cpp is given the first, Ollama counts all"
                ));
            }
        }
    }

    /// Ollama's types, which need flash attention there.
    fn cache_type(&mut self, low: &mut LowArgs, is_fused: bool, set: &mut Vec<String>) {
        const BY: &str = "OLLAMA_KV_CACHE_TYPE";
        let Some(ty) = self.variables.kv_cache_type.clone() else {
            return;
        };
        if !["f16", "q8_0", "q4_0"].contains(&ty.as_str()) {
            self.notes.push(format!(
                "{BY} {ty}: Ollama takes f16, q8_0 and q4_0, and f16 for all else"
            ));
        } else if !is_fused {
            self.notes.push(format!(
                "{BY} {ty} has no say without flash attention (OLLAMA_FLASH_ATTENTION)"
            ));
        } else {
            for id in ["cache-type-k", "cache-type-v"] {
                if low.add_default(id, ty.clone(), BY) {
                    set.push(format!("{BY} {ty}"));
                }
            }
        }
    }
}

/// Sets the context and says so. Ollama counts that of one request, llama.cpp that of all.
fn context(low: &mut LowArgs, num_ctx: Option<u64>, variable: Option<u64>) -> Option<String> {
    let parallel = low
        .value("parallel")
        .and_then(|said| said.text.parse().ok());
    let parallel = parallel.filter(|&n: &u64| n > 0);
    let (n, by) = match (num_ctx, variable, parallel) {
        (Some(n), _, _) => (n, "num_ctx (Modelfile)"),
        (None, Some(n), _) => (n, "OLLAMA_CONTEXT_LENGTH"),
        (None, None, Some(2..)) => (CONTEXT, "context by default"),
        (None, None, _) => return None,
    };
    let of_all = n.saturating_mul(parallel.unwrap_or(1));
    let is_new = low.add_default("ctx-size", of_all.to_string(), by);
    is_new.then(|| match parallel {
        Some(2..) => format!("{by} {n} for each request"),
        _ => format!("{by} {n}"),
    })
}

/// The file that `path` names: itself, or the model of the store.
pub fn file(path: &Path, env: &dyn Fn(&str) -> Option<OsString>) -> Result<PathBuf, String> {
    let Some(text) = path.to_str().and_then(|path| path.strip_prefix(PREFIX)) else {
        return Ok(path.to_owned());
    };
    let store = Store::new(env).map_err(error_text)?;
    let name: Name = text.parse().map_err(error_text)?;
    Ok(store.find(&name).map_err(error_text)?.model)
}

fn error_text(error: vramfit::ollama::Error) -> String {
    error.to_string()
}
