//! One case: a model, GPUs and llama.cpp's settings.

use std::fmt::Write as _;

/// An imaginary GPU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gpu {
    /// Memory, all of it free.
    pub total_bytes: u64,
    /// Compute capability, as in "8.6".
    pub compute_capability: String,
}

/// What one row of a truth table is about.
#[derive(Clone, Debug)]
pub struct Case {
    /// File name of the model.
    pub model: String,
    /// The GPUs, in order; none for a machine without.
    pub gpus: Vec<Gpu>,
    /// Flags of the oracle, which are llama.cpp's.
    pub flags: String,
}

/// `SIZE_BYTES:CC,..` or `-`.
pub fn gpus_text(gpus: &[Gpu]) -> String {
    if gpus.is_empty() {
        return "-".to_owned();
    }
    let one = |gpu: &Gpu| format!("{}:{}", gpu.total_bytes, gpu.compute_capability);
    gpus.iter().map(one).collect::<Vec<_>>().join(",")
}

/// `flags` with the files of adapters, which lie beside their model, under their rule.
pub fn flags_beside(flags: &str, model: &dyn std::fmt::Display) -> String {
    flags.replace("--lora ", &format!("--lora {model}."))
}

impl Case {
    /// The first three columns of its row; no two cases share them.
    pub fn key(&self) -> String {
        format!("{}\t{}\t{}", self.model, gpus_text(&self.gpus), self.flags)
    }

    /// The line for `oracle --jobs`: a real load that never runs out of GPU memory.
    pub fn job_line(&self, folder: &str) -> String {
        let environment = self.environment();
        let model = format!("{folder}/{}", self.model);
        let flags = flags_beside(&self.flags, &model);
        format!("{environment} '{model}' {flags} --real")
    }

    /// The same for a person to type.
    pub fn command(&self, model: &str) -> String {
        let quoted = |word: &str| {
            if word.contains(['\\', '*', '(', '|', '[']) {
                format!("'{word}'")
            } else {
                word.to_owned()
            }
        };
        let flags: Vec<String> = self.flags.split(' ').map(quoted).collect();
        let environment = self.environment();
        format!(
            "{environment} cargo run -p vramfit-oracle -- run {} {} --real",
            model,
            flags.join(" ")
        )
    }

    fn environment(&self) -> String {
        let mut line = String::from("VGPU_NO_OOM=1 VGPU=");
        if self.gpus.is_empty() {
            line += "unused:1GiB:8.6"; // CUDA needs one; the flags then say -dev none
        }
        for (i, gpu) in self.gpus.iter().enumerate() {
            let comma = if i > 0 { "," } else { "" };
            let _ = write!(
                line,
                "{comma}G{i}:{}:{}",
                gpu.total_bytes, gpu.compute_capability
            );
        }
        line
    }
}
