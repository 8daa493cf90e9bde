//! Every flag as data: llama.cpp's own names, short, long and negative, and their environment
//! variables, as of `common/arg.cpp` of v0.5.0; then those that only `estimate` has.

/// What follows a flag.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Takes {
    /// Nothing: it is there or it is not.
    Nothing,
    /// One value, shown under this name; the last one counts.
    One(&'static str),
    /// One value each time it is given; all count.
    Each(&'static str),
    /// Two values, shown under these names; the last two count.
    Two([&'static str; 2]),
}

/// Where a flag stands in the help.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Group {
    /// What is run.
    Model,
    /// What takes memory.
    Memory,
    /// What goes where.
    Placement,
    /// What is printed.
    Output,
    /// Not shown: llama-server's flags that have no say in memory. They are read and ignored, so that
    /// a command line can be pasted.
    Ignored,
}

/// A flag. Names are written with their dashes.
#[derive(Clone, Copy, Debug)]
pub struct Flag {
    /// The long name by which it is known here.
    pub long: &'static str,
    /// Short names and other long ones.
    pub aliases: &'static [&'static str],
    /// Names that mean its opposite, the long one first.
    pub negative: &'static [&'static str],
    /// Environment variable.
    pub env: &'static str,
    /// What follows.
    pub takes: Takes,
    /// All values there are; empty for any.
    pub choices: &'static [&'static str],
    /// Where it is shown.
    pub group: Group,
    /// For the help.
    pub help: &'static str,
}

use Group::{Ignored, Memory, Model, Output, Placement};
use Takes::{Each, Nothing, One, Two};

const TYPES: &[&str] = &[
    "f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "iq4_nl", "q5_0", "q5_1",
];

const NO: Flag = Flag {
    long: "",
    aliases: &[],
    negative: &[],
    env: "",
    takes: Nothing,
    choices: &[],
    group: Ignored,
    help: "",
};

/// All of them, in the order of the help.
#[rustfmt::skip]
pub const FLAGS: &[Flag] = &[
    Flag { long: "--model", aliases: &["-m"], env: "LLAMA_ARG_MODEL", takes: Each("MODEL"), group: Model,
        help: "the model; the same as MODEL without a flag", ..NO },
    Flag { long: "--ctx-size", aliases: &["-c"], env: "LLAMA_ARG_CTX_SIZE", takes: One("N"), group: Model,
        help: "tokens of context; 0 for the model's own (default 4096)", ..NO },
    Flag { long: "--batch-size", aliases: &["-b"], env: "LLAMA_ARG_BATCH", takes: One("N"), group: Model,
        help: "tokens of a logical batch (default 2048)", ..NO },
    Flag { long: "--ubatch-size", aliases: &["-ub"], env: "LLAMA_ARG_UBATCH", takes: One("N"), group: Model,
        help: "tokens computed at once (default 512)", ..NO },
    Flag { long: "--parallel", aliases: &["-np"], env: "LLAMA_ARG_N_PARALLEL", takes: One("N"), group: Model,
        help: "sequences at once (default 1); -1 is llama-server's own default, 4 with one KV cache", ..NO },
    Flag { long: "--n-outputs", takes: One("N"), group: Model,
        help: "tokens of a batch whose logits are reserved: by default one a sequence, as llama-server does; 0 for every token, the library's default", ..NO },
    Flag { long: "--embeddings", aliases: &["--embedding"], env: "LLAMA_ARG_EMBEDDINGS", group: Model,
        help: "embeddings are wanted", ..NO },
    Flag { long: "--reranking", aliases: &["--rerank"], env: "LLAMA_ARG_RERANKING", group: Model,
        help: "the same, pooled as a score", ..NO },
    Flag { long: "--pooling", env: "LLAMA_ARG_POOLING", takes: One("HOW"), choices: &["none", "mean", "cls", "last", "rank"], group: Model,
        help: "pooling of embeddings (default: the model's)", ..NO },

    Flag { long: "--flash-attn", aliases: &["-fa"], env: "LLAMA_ARG_FLASH_ATTN", takes: One("WHEN"), choices: &["on", "off", "auto"], group: Memory,
        help: "flash attention (default auto)", ..NO },
    Flag { long: "--cache-type-k", aliases: &["-ctk"], env: "LLAMA_ARG_CACHE_TYPE_K", takes: One("TYPE"), choices: TYPES, group: Memory,
        help: "type of the K cache (default f16)", ..NO },
    Flag { long: "--cache-type-v", aliases: &["-ctv"], env: "LLAMA_ARG_CACHE_TYPE_V", takes: One("TYPE"), choices: TYPES, group: Memory,
        help: "type of the V cache (default f16)", ..NO },
    Flag { long: "--kv-unified", aliases: &["-kvu"], negative: &["--no-kv-unified", "-no-kvu"], env: "LLAMA_ARG_KV_UNIFIED", group: Memory,
        help: "one KV cache for all sequences", ..NO },
    Flag { long: "--kv-offload", aliases: &["-kvo"], negative: &["--no-kv-offload", "-nkvo"], env: "LLAMA_ARG_KV_OFFLOAD", group: Memory,
        help: "the KV cache is on the GPUs (default) or on the host", ..NO },
    Flag { long: "--swa-full", env: "LLAMA_ARG_SWA_FULL", group: Memory,
        help: "a full-size cache for layers with a sliding window", ..NO },
    Flag { long: "--op-offload", negative: &["--no-op-offload"], group: Memory,
        help: "large batches of host weights are computed on a GPU (default)", ..NO },
    Flag { long: "--load-mode", aliases: &["-lm"], env: "LLAMA_ARG_LOAD_MODE", takes: One("MODE"), choices: &["auto", "none", "mmap", "mlock", "mmap+mlock", "dio"], group: Memory,
        help: "how the file is read (default auto, by memory map)", ..NO },
    Flag { long: "--mmap", negative: &["--no-mmap"], env: "LLAMA_ARG_MMAP", group: Memory,
        help: "older names of -lm mmap and -lm none", ..NO },
    Flag { long: "--no-host", env: "LLAMA_ARG_NO_HOST", group: Memory,
        help: "the CPU's buffers are not pinned", ..NO },
    Flag { long: "--repack", negative: &["--no-repack", "-nr"], env: "LLAMA_ARG_REPACK", group: Memory,
        help: "the CPU re-orders weights that are its own (default)", ..NO },

    Flag { long: "--lora", takes: Each("FILE,.."), group: Memory,
        help: "LoRA adapters", ..NO },
    Flag { long: "--lora-scaled", takes: Each("FILE:SCALE,.."), group: Memory,
        help: "the same, scaled", ..NO },
    Flag { long: "--lora-init-without-apply", group: Memory,
        help: "adapters are loaded, and applied only later", ..NO },
    Flag { long: "--control-vector", takes: Each("FILE,.."), group: Memory,
        help: "control vectors, for all layers", ..NO },
    Flag { long: "--control-vector-layer-range", takes: Two(["START", "END"]), group: Memory,
        help: "the layers that control vectors are added behind, both included", ..NO },
    Flag { long: "--control-vector-scaled", takes: Each("FILE:SCALE,.."), group: Memory,
        help: "the same, scaled", ..NO },

    Flag { long: "--mmproj", aliases: &["-mm"], env: "LLAMA_ARG_MMPROJ", takes: One("FILE"), group: Memory,
        help: "a multimodal projector, which is loaded beside the model", ..NO },
    Flag { long: "--mmproj-offload", negative: &["--no-mmproj-offload"], env: "LLAMA_ARG_MMPROJ_OFFLOAD", group: Memory,
        help: "the projector is on a GPU (default) or on the host", ..NO },
    Flag { long: "--mmproj-device", aliases: &["-mmdev"], env: "MTMD_BACKEND_DEVICE", takes: One("CUDA0"), group: Memory,
        help: "the projector's GPU (default: the first of -dev)", ..NO },
    Flag { long: "--image-min-tokens", env: "LLAMA_ARG_IMAGE_MIN_TOKENS", takes: One("N"), group: Memory,
        help: "least tokens of an image", ..NO },
    Flag { long: "--image-max-tokens", env: "LLAMA_ARG_IMAGE_MAX_TOKENS", takes: One("N"), group: Memory,
        help: "most tokens of an image", ..NO },

    Flag { long: "--spec-draft-model", aliases: &["-md", "--model-draft"], env: "LLAMA_ARG_SPEC_DRAFT_MODEL", takes: One("FILE"), group: Memory,
        help: "a draft model, which is loaded beside the model", ..NO },
    Flag { long: "--spec-type", env: "LLAMA_ARG_SPEC_TYPE", takes: Each("TYPE,.."), group: Memory,
        help: "how tokens are drafted: draft-simple, draft-eagle3, draft-mtp (also without a draft model), draft-dflash, draft-dspark, ngram-mod and so on (default what the draft's file is for)", ..NO },
    Flag { long: "--spec-draft-n-max", env: "LLAMA_ARG_SPEC_DRAFT_N_MAX", takes: One("N"), group: Memory,
        help: "tokens that are drafted at most (default 3)", ..NO },
    Flag { long: "--spec-draft-type-k", aliases: &["-ctkd", "--cache-type-k-draft"], env: "LLAMA_ARG_SPEC_DRAFT_CACHE_TYPE_K", takes: One("TYPE"), group: Memory,
        help: "-ctk of the draft", ..NO },
    Flag { long: "--spec-draft-type-v", aliases: &["-ctvd", "--cache-type-v-draft"], env: "LLAMA_ARG_SPEC_DRAFT_CACHE_TYPE_V", takes: One("TYPE"), group: Memory,
        help: "-ctv of the draft", ..NO },
    Flag { long: "--spec-draft-backend-sampling", negative: &["--no-spec-draft-backend-sampling"], env: "LLAMA_ARG_SPEC_DRAFT_BACKEND_SAMPLING", group: Memory,
        help: "drafts are chosen on the GPU (default)", ..NO },
    Flag { long: "--spec-draft-ngl", aliases: &["-ngld", "--gpu-layers-draft", "--n-gpu-layers-draft"], env: "LLAMA_ARG_N_GPU_LAYERS_DRAFT", takes: One("N"), group: Placement,
        help: "-ngl of the draft (default all)", ..NO },
    Flag { long: "--spec-draft-device", aliases: &["-devd", "--device-draft"], takes: One("CUDA0,.."), group: Placement,
        help: "-dev of the draft (default the model's)", ..NO },
    Flag { long: "--spec-draft-override-tensor", aliases: &["-otd", "--override-tensor-draft"], takes: Each("PATTERN=BUFFER"), group: Placement,
        help: "-ot of the draft", ..NO },
    Flag { long: "--spec-draft-cpu-moe", aliases: &["-cmoed", "--cpu-moe-draft"], env: "LLAMA_ARG_SPEC_DRAFT_CPU_MOE", group: Placement,
        help: "-cmoe of the draft", ..NO },
    Flag { long: "--spec-draft-n-cpu-moe", aliases: &["-ncmoed", "--n-cpu-moe-draft"], env: "LLAMA_ARG_SPEC_DRAFT_N_CPU_MOE", takes: One("N"), group: Placement,
        help: "-ncmoe of the draft", ..NO },

    Flag { long: "--gpus", takes: One("SPEC"), group: Placement,
        help: "the GPUs, see below (default auto)", ..NO },
    Flag { long: "--probe-timeout", takes: One("SECONDS"), group: Placement,
        help: "how long this machine's driver may take to answer --gpus auto (default 20)", ..NO },
    Flag { long: "--probe-context", group: Placement,
        help: "where NVML cannot say what is free on this machine's GPUs, ask from inside a short-lived CUDA context, which takes memory meanwhile", ..NO },
    Flag { long: "--profile", takes: One("FILE"), group: Placement,
        help: "what CUDA was measured to take, as `estimate calibrate` learns it (default $VRAMFIT_PROFILES, else overhead.json in the user's data folder)", ..NO },
    Flag { long: "--engine", takes: One("WHICH"), choices: &["llama.cpp", "llama.cpp-2025", "ollama-classic"], group: Placement,
        help: "whose memory and placement: llama.cpp v0.5.0's (default), that of builds before pull request 17232 (13 November 2025) on Kepler (llama.cpp-2025), or what the Ollama of early 2025 or its K80 fork (--ollama-rules) decides by its own estimate", ..NO },
    Flag { long: "--fixed", group: Placement,
        help: "with --engine ollama-classic: a full fit is tested with the graph that a full offload has", ..NO },
    Flag { long: "--ollama-rules", takes: One("WHOSE"), choices: &["auto", "upstream", "ollama37"], group: Placement,
        help: "for ollama-classic and compare: Ollama's of April 2025 (upstream), or its K80 fork's of 29 October 2025 (ollama37); auto is the fork's with GPUs older than compute capability 5.0", ..NO },
    Flag { long: "--layout", takes: One("WHO"), choices: &["best", "engine"], group: Placement,
        help: "who lays out: estimate searches (best, default), or llama.cpp by itself as with --fit off (engine)", ..NO },
    Flag { long: "--prefer", takes: One("WHICH"), choices: &["most-free", "first", "last", "tightest"], group: Placement,
        help: "which GPU, when several would do alone (default most-free)", ..NO },
    Flag { long: "--n-gpu-layers", aliases: &["-ngl", "--gpu-layers"], env: "LLAMA_ARG_N_GPU_LAYERS", takes: One("N"), group: Placement,
        help: "layers on GPUs: a number, all, or auto (default)", ..NO },
    Flag { long: "--tensor-split", aliases: &["-ts"], env: "LLAMA_ARG_TENSOR_SPLIT", takes: One("N,N,.."), group: Placement,
        help: "shares of the GPUs", ..NO },
    Flag { long: "--split-mode", aliases: &["-sm"], env: "LLAMA_ARG_SPLIT_MODE", takes: One("MODE"), choices: &["none", "layer", "row", "tensor"], group: Placement,
        help: "one GPU (none), layers over all (layer), or a part of every layer on each (tensor); row is refused", ..NO },
    Flag { long: "--main-gpu", aliases: &["-mg"], env: "LLAMA_ARG_MAIN_GPU", takes: One("INDEX"), group: Placement,
        help: "the GPU of -sm none", ..NO },
    Flag { long: "--device", aliases: &["-dev"], env: "LLAMA_ARG_DEVICE", takes: One("CUDA0,.."), group: Placement,
        help: "GPUs to use, in this order; none for the CPU alone", ..NO },
    Flag { long: "--override-tensor", aliases: &["-ot"], env: "LLAMA_ARG_OVERRIDE_TENSOR", takes: Each("PATTERN=BUFFER"), group: Placement,
        help: "tensors that match go to CPU, or to CUDA0 and so on", ..NO },
    Flag { long: "--cpu-moe", aliases: &["-cmoe"], env: "LLAMA_ARG_CPU_MOE", group: Placement,
        help: "all experts on the host", ..NO },
    Flag { long: "--n-cpu-moe", aliases: &["-ncmoe"], env: "LLAMA_ARG_N_CPU_MOE", takes: One("N"), group: Placement,
        help: "experts of the first N layers on the host", ..NO },

    Flag { long: "--json", group: Output,
        help: "one JSON object a model, sizes in bytes (`estimate schema` describes it)", ..NO },
    Flag { long: "--color", takes: One("WHEN"), choices: &["auto", "always", "never"], group: Output,
        help: "colours; auto is on a terminal, unless NO_COLOR is set", ..NO },
    Flag { long: "--width", takes: One("COLUMNS"), group: Output,
        help: "width of the text (default: the terminal's, or 80)", ..NO },

    Flag { long: "--fit", aliases: &["-fit"], takes: One("WHEN"), choices: &["on", "off"], ..NO },
    Flag { long: "--threads", aliases: &["-t"], takes: One("N"), ..NO },
    Flag { long: "--threads-batch", aliases: &["-tb"], takes: One("N"), ..NO },
    Flag { long: "--alias", aliases: &["-a"], takes: One("NAME"), ..NO },
    Flag { long: "--host", takes: One("HOST"), ..NO },
    Flag { long: "--port", takes: One("PORT"), ..NO },
    Flag { long: "--jinja", ..NO },
    Flag { long: "--no-warmup", ..NO },
    Flag { long: "--metrics", ..NO },
    Flag { long: "--props", ..NO },
    Flag { long: "--slots", negative: &["--no-slots"], ..NO },
    Flag { long: "--cont-batching", aliases: &["-cb"], negative: &["--no-cont-batching", "-nocb"], ..NO },
    Flag { long: "--verbose", aliases: &["-v", "--log-verbose"], ..NO },
    Flag { long: "--verbosity", aliases: &["-lv", "--log-verbosity"], takes: One("N"), ..NO },
    Flag { long: "--log-file", takes: One("FILE"), ..NO },
    Flag { long: "--api-key", takes: One("KEY"), ..NO },
    Flag { long: "--timeout", aliases: &["-to"], takes: One("N"), ..NO },
    Flag { long: "--threads-http", takes: One("N"), ..NO },
    Flag { long: "--ctx-checkpoints", aliases: &["-ctxcp", "--swa-checkpoints"], takes: One("N"), ..NO },
    Flag { long: "--cache-ram", aliases: &["-cram"], takes: One("N"), ..NO },
    Flag { long: "--cache-reuse", takes: One("N"), ..NO },
    Flag { long: "--slot-save-path", takes: One("PATH"), ..NO },
    Flag { long: "--slot-prompt-similarity", aliases: &["-sps"], takes: One("N"), ..NO },
    Flag { long: "--chat-template", takes: One("TEMPLATE"), ..NO },
    Flag { long: "--reasoning-format", takes: One("FORMAT"), ..NO },
    Flag { long: "--reasoning-budget", takes: One("N"), ..NO },
    Flag { long: "--predict", aliases: &["-n", "--n-predict"], takes: One("N"), ..NO },
    Flag { long: "--seed", aliases: &["-s"], takes: One("N"), ..NO },
    Flag { long: "--temperature", aliases: &["--temp"], takes: One("N"), ..NO },
    Flag { long: "--top-k", takes: One("N"), ..NO },
    Flag { long: "--top-p", takes: One("N"), ..NO },
    Flag { long: "--min-p", takes: One("N"), ..NO },
    Flag { long: "--repeat-penalty", takes: One("N"), ..NO },
    Flag { long: "--presence-penalty", takes: One("N"), ..NO },
    Flag { long: "--sleep-idle-seconds", takes: One("N"), ..NO },
    Flag { long: "--rope-scaling", takes: One("HOW"), ..NO },
    Flag { long: "--rope-scale", takes: One("N"), ..NO },
    Flag { long: "--rope-freq-base", takes: One("N"), ..NO },
    Flag { long: "--rope-freq-scale", takes: One("N"), ..NO },
    Flag { long: "--yarn-orig-ctx", takes: One("N"), ..NO },
    Flag { long: "--yarn-ext-factor", takes: One("N"), ..NO },
    Flag { long: "--yarn-attn-factor", takes: One("N"), ..NO },
    Flag { long: "--yarn-beta-slow", takes: One("N"), ..NO },
    Flag { long: "--yarn-beta-fast", takes: One("N"), ..NO },
    Flag { long: "--numa", takes: One("HOW"), ..NO },
    Flag { long: "--context-shift", negative: &["--no-context-shift"], ..NO },
    Flag { long: "--cache-prompt", negative: &["--no-cache-prompt"], ..NO },
    Flag { long: "--keep", takes: One("N"), ..NO },
    Flag { long: "--prio", takes: One("N"), ..NO },
    Flag { long: "--poll", takes: One("N"), ..NO },
    Flag { long: "--check-tensors", ..NO },
    Flag { long: "--offline", ..NO },
    // of what is downloaded: a file that is named is loaded all the same
    Flag { long: "--mmproj-auto", negative: &["--no-mmproj-auto", "--no-mmproj"], ..NO },
    Flag { long: "--ssl-key-file", takes: One("FILE"), ..NO },
    Flag { long: "--ssl-cert-file", takes: One("FILE"), ..NO },
    Flag { long: "--api-prefix", takes: One("PREFIX"), ..NO },
    Flag { long: "--fit-target", aliases: &["-fitt"], takes: One("N"), ..NO },
    Flag { long: "--fit-ctx", aliases: &["-fitc"], takes: One("N"), ..NO },
];

impl Flag {
    /// Its name in clap: the long one without dashes.
    pub fn id(&self) -> &'static str {
        bare(self.long)
    }

    /// The name of its opposite in clap.
    pub fn negative_id(&self) -> Option<&'static str> {
        self.negative.first().map(|name| bare(name))
    }

    /// Whether a value follows.
    pub fn takes_value(&self) -> bool {
        self.takes != Nothing
    }
}

/// A name without its dashes.
pub fn bare(name: &str) -> &str {
    name.trim_start_matches('-')
}

/// A name of one dash.
pub fn is_short(name: &str) -> bool {
    name.starts_with('-') && !name.starts_with("--")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn names_are_unique_and_written_with_dashes() {
        let mut seen = BTreeSet::new();
        for flag in FLAGS {
            assert!(flag.long.starts_with("--"), "{}", flag.long);
            for name in [&[flag.long], flag.aliases, flag.negative].concat() {
                assert!(name.starts_with('-') && !name.ends_with('-'), "{name}");
                assert!(seen.insert(name), "{name} twice");
            }
            if let Some(negative) = flag.negative.first() {
                assert!(negative.starts_with("--no-"), "{negative}");
                assert!(!flag.takes_value(), "{negative}");
            }
            let own = ["", "MTMD_BACKEND_DEVICE"].contains(&flag.env);
            assert!(own || flag.env.starts_with("LLAMA_ARG_"));
            assert_eq!(flag.group == Ignored, flag.help.is_empty(), "{}", flag.long);
        }
    }
}
