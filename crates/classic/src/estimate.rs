//! The estimator: how many layers go where, and what that is said to take.

use crate::cache::{CacheType, Load, cache};
use crate::graph::{Graphs, graphs};
use crate::place::{Held, Terms, place};
use crate::vision::Vision;
use crate::{Facts, Gpu, Library};

/// Less context is not given to a request.
const LEAST_CONTEXT: u64 = 4;
/// Nor less in all to a model with a projector in a file of its own.
const LEAST_CONTEXT_OF_PROJECTORS: u64 = 2048;

/// Whose estimator.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Version {
    /// Ollama as of April 2025. It supports GPUs of compute capability 5.0 and newer.
    #[default]
    Upstream,
    /// The fork for compute capability 3.7 (ollama37) as of 29 October 2025: the last GPU is filled
    /// first, GPUs before it are charged 190 MiB of graph, and a vision tower in the model's file
    /// goes with the output layer. The source of that day is not at hand: these rules are what its
    /// notes (in the repository dogkeeper886/ollama37) say, and they give the split and the sizes of its log.
    /// They were taken back on the next day. Builds before and after hand out layers in turn, as
    /// [`Version::Upstream`] does; later ones multiply the graphs by 3.5 or 2.5 besides (its llm/memory.go),
    /// which is not modelled.
    K80Fork,
}

impl Version {
    /// In words.
    pub fn name(self) -> &'static str {
        match self {
            Version::Upstream => "Ollama, April 2025",
            Version::K80Fork => "ollama37 (the Tesla K80 fork), 29 October 2025",
        }
    }
}

/// Which rules hold.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Rules {
    /// Whose.
    pub version: Version,
    /// With the graph's fault mended: whether everything fits is tested with the graph that a full
    /// offload has, how much fits otherwise with that of a partial one.
    pub fixed: bool,
}

/// What is asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Settings {
    /// Tokens of context of each request (`num_ctx`).
    pub context: u64,
    /// Requests at once (`OLLAMA_NUM_PARALLEL`).
    pub parallel: u64,
    /// Tokens of a batch (`num_batch`), held to the context.
    pub batch: u64,
    /// Layers asked for (`num_gpu`); all that fit if `None`.
    pub num_gpu: Option<u64>,
    /// Type of the cache (`OLLAMA_KV_CACHE_TYPE`); f16 without flash attention.
    pub cache_type: CacheType,
    /// Flash attention (`OLLAMA_FLASH_ATTENTION`), where GPUs and model have it.
    pub flash_attention: bool,
    /// Held back on each GPU (`OLLAMA_GPU_OVERHEAD`), bytes.
    pub overhead_bytes: u64,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            context: 4096,
            parallel: 1,
            batch: 512,
            num_gpu: None,
            cache_type: CacheType::F16,
            flash_attention: false,
            overhead_bytes: 0,
        }
    }
}

impl Settings {
    /// What they come to for a model.
    pub fn load(&self, model: &Facts) -> Load {
        let flash_attention = self.flash_attention && model.has_flash_attention();
        let context = self.context.max(LEAST_CONTEXT);
        let all = context.saturating_mul(self.parallel);
        let has_projector = model.projector_files_bytes > 0;
        Load {
            context: if has_projector {
                all.max(LEAST_CONTEXT_OF_PROJECTORS)
            } else {
                all
            },
            batch: self.batch.min(context),
            parallel: self.parallel,
            cache_type: match flash_attention {
                true => self.cache_type,
                false => CacheType::F16,
            },
            flash_attention,
        }
    }
}

/// What one GPU is charged with, term by term; bytes.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Share {
    /// Held back on every GPU of its kind.
    pub minimum: u64,
    /// One layer, as a buffer.
    pub layer_buffer: u64,
    /// Weights of its repeating layers.
    pub repeating: u64,
    /// KV cache of its layers.
    pub kv: u64,
    /// The output layer.
    pub output: u64,
    /// Weights of vision tower and projectors.
    pub projector_weights: u64,
    /// Graph of the vision tower.
    pub projector_graph: u64,
    /// The compute graph.
    pub graph: u64,
    /// Its layers, ascending; the output layer is the number of blocks.
    pub layers: Vec<usize>,
}

impl Share {
    /// All of it.
    pub fn sum(&self) -> u64 {
        let terms = self.terms();
        terms.iter().fold(0, |sum, (_, n)| sum.saturating_add(*n))
    }

    /// Every term with its name.
    pub fn terms(&self) -> [(&'static str, u64); 8] {
        [
            ("minimum", self.minimum),
            ("layer buffer", self.layer_buffer),
            ("repeating layers", self.repeating),
            ("KV cache", self.kv),
            ("output layer", self.output),
            ("projector weights", self.projector_weights),
            ("projector graph", self.projector_graph),
            ("graph", self.graph),
        ]
    }
}

/// What the estimator says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Estimate {
    /// One a GPU, in the order given.
    pub shares: Vec<Share>,
    /// Layers that go to GPUs, the output layer counted (`layers.offload`).
    pub layers_offload: u64,
    /// All layers, the output layer counted (`layers.model`).
    pub layers_model: u64,
    /// `num_gpu` (`layers.requested`).
    pub layers_requested: Option<u64>,
    /// Everything is on GPUs.
    pub fully_loaded: bool,
    /// Everything, what is on no GPU included (`memory.required.full`).
    pub required_full: u64,
    /// On GPUs (`memory.required.partial`).
    pub required_partial: u64,
    /// KV cache of all layers (`memory.required.kv`).
    pub kv: u64,
    /// Weights of the blocks (`memory.weights.repeating`).
    pub repeating: u64,
    /// Weights of the output layer (`memory.weights.nonrepeating`).
    pub nonrepeating: u64,
    /// Graph sizes as they are used: with several GPUs both are the partial one (`memory.graph`).
    pub graph: Graphs,
    /// Graph sizes by formula.
    pub formula: Graphs,
    /// Vision tower and projectors (`projector`).
    pub projector: Vision,
    /// Context, batch and cache.
    pub load: Load,
}

impl Estimate {
    /// Whether Ollama takes this for a full fit.
    pub fn fits(&self) -> bool {
        let wanted = self.layers_requested.unwrap_or(self.layers_model);
        self.layers_offload > 0 && self.layers_offload >= wanted
    }

    /// Layers of each GPU as logged (`layers.split`); empty for one GPU.
    pub fn split(&self) -> String {
        let counts = self
            .shares
            .iter()
            .map(|share| share.layers.len().to_string());
        match self.shares.len() {
            0 | 1 => String::new(),
            _ => counts.collect::<Vec<_>>().join(","),
        }
    }
}

/// Predicts how many layers `gpus`, all of one kind, take.
pub fn estimate(model: &Facts, gpus: &[Gpu], settings: &Settings, rules: &Rules) -> Estimate {
    let load = settings.load(model);
    let formula = graphs(model, &load);
    let mut graph = formula;
    if gpus
        .first()
        .is_some_and(|gpu| gpu.library == Library::Metal)
    {
        graph.partial = graph.full;
    } else if gpus.len() > 1 {
        graph.full = graph.partial;
    }
    let in_file = match model.projector_files_bytes {
        0 => model.vision,
        _ => Vision::default(),
    };
    let terms = Terms {
        model,
        gpus,
        kv: cache(model, &load),
        in_file,
        overhead: settings.overhead_bytes,
        num_gpu: settings.num_gpu,
        version: rules.version,
    };
    let placed = if rules.fixed {
        let full = place(&terms, graph.full, graph, Held::Nothing);
        match full.fully_loaded {
            true => full,
            false => place(&terms, graph.partial, graph, Held::Output),
        }
    } else {
        place(&terms, graph.full.max(graph.partial), graph, Held::Nothing)
    };
    let sum = |numbers: &[u64]| numbers.iter().fold(0u64, |sum, n| sum.saturating_add(*n));
    let shares: Vec<u64> = placed.shares.iter().map(Share::sum).collect();
    let required_partial = sum(&shares);
    Estimate {
        layers_offload: placed.n_layers,
        layers_model: model.n_layer() as u64 + 1,
        layers_requested: settings.num_gpu,
        fully_loaded: placed.fully_loaded,
        required_full: required_partial.saturating_add(placed.overflow),
        required_partial,
        kv: sum(&terms.kv),
        repeating: sum(&model.blocks),
        nonrepeating: model.output_bytes,
        graph,
        formula,
        projector: Vision {
            weights_bytes: in_file
                .weights_bytes
                .saturating_add(model.projector_files_bytes),
            graph_bytes: in_file.graph_bytes,
        },
        load,
        shares: placed.shares,
    }
}
