//! The settings of a case and the flags they become.

use std::fmt::Write as _;

use crate::case::{Case, Gpu};
use crate::models::Model;

/// llama.cpp's settings, with the oracle's defaults.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// The GPUs; empty for a machine without (`-dev none` is added).
    pub gpus: Vec<Gpu>,
    /// `-ngl`
    pub n_gpu_layers: i64,
    /// `-c`, 0 for the model's.
    pub n_ctx: u64,
    /// `-b`
    pub n_batch: u64,
    /// `-ub`
    pub n_ubatch: u64,
    /// `-fa`
    pub flash_attn: &'static str,
    /// `-np`
    pub n_parallel: u64,
    /// `--kv-unified`
    pub kv_unified: bool,
    /// `--n-outputs`, 0 for the library's rule.
    pub n_outputs: u64,
    /// `-ctk`, `-ctv`
    pub cache_types: (&'static str, &'static str),
    /// Anything else, as flags.
    pub more: Vec<String>,
}

impl Settings {
    /// All layers on these GPUs, 4096 tokens, flash attention on, one output: the plainest case.
    pub fn plain(gpus: Vec<Gpu>) -> Self {
        Self {
            gpus,
            n_gpu_layers: 99,
            n_ctx: 4096,
            n_batch: 2048,
            n_ubatch: 512,
            flash_attn: "on",
            n_parallel: 1,
            kv_unified: false,
            n_outputs: 1,
            cache_types: ("f16", "f16"),
            more: Vec::new(),
        }
    }

    /// Adds flags, one word each.
    pub fn with(mut self, words: &str) -> Self {
        self.more.extend(words.split(' ').map(str::to_owned));
        self
    }

    fn has(&self, flag: &str) -> bool {
        self.more.iter().any(|word| word == flag)
    }

    /// Host memory is real in a real load: fewer tokens where a part of the cache or of the graph stays on the CPU.
    fn fit_the_host(&mut self, model: &Model) {
        const CACHE_BYTES: u64 = 1 << 30;
        const SCORES_BYTES: u64 = 4 << 30;
        let layers = u64::from(model.entry.n_layer);
        let none = self.gpus.is_empty()
            || self
                .more
                .windows(2)
                .any(|two| two[0] == "-dev" && two[1] == "none");
        let on_gpus = if self.n_gpu_layers < 0 {
            layers + 1
        } else {
            self.n_gpu_layers.unsigned_abs()
        };
        let on_host = if none || self.has("-nkvo") {
            layers
        } else {
            (layers + 1).saturating_sub(on_gpus).min(layers)
        };
        if on_host == 0 {
            return;
        }
        let size = |name: &str| match name {
            "f32" => 4,
            "f16" | "bf16" => 2,
            _ => 1,
        };
        let width = size(self.cache_types.0).max(size(self.cache_types.1));
        let per_token = model.cache_bytes_per_token * width / 2 * on_host / layers.max(1);
        let scores = self.n_ubatch.min(self.n_batch).max(1) * model.n_head * 4;
        let too_much = |n: u64| n * per_token > CACHE_BYTES || n * scores > SCORES_BYTES;
        if self.n_ctx == 0 && too_much(model.n_ctx_train) {
            self.n_ctx = 8192;
        }
        while self.n_ctx > 512 && too_much(self.n_ctx) {
            self.n_ctx /= 2;
        }
    }

    /// The case, with flags in a fixed order and without those that are defaults.
    pub fn case(mut self, model: &Model) -> Case {
        self.fit_the_host(model);
        let mut flags = format!("-ngl {} -c {}", self.n_gpu_layers, self.n_ctx);
        let mut add = |given: bool, name: &str, value: &dyn std::fmt::Display| {
            if given {
                let _ = write!(flags, " {name} {value}");
            }
        };
        add(self.n_batch != 2048, "-b", &self.n_batch);
        add(self.n_ubatch != 512, "-ub", &self.n_ubatch);
        add(true, "-fa", &self.flash_attn);
        add(self.n_parallel != 1, "-np", &self.n_parallel);
        add(self.kv_unified, "--kv-unified", &1);
        add(self.n_outputs != 0, "--n-outputs", &self.n_outputs);
        add(self.cache_types.0 != "f16", "-ctk", &self.cache_types.0);
        add(self.cache_types.1 != "f16", "-ctv", &self.cache_types.1);
        for word in &self.more {
            flags.push(' ');
            flags += word;
        }
        if self.gpus.is_empty() && !self.has("-dev") {
            flags += " -dev none";
        }
        Case {
            model: model.entry.file.clone(),
            gpus: self.gpus,
            flags,
        }
    }
}
