//! `oracle allocations`: every buffer that a real load takes on the GPUs, as `vgpu` sees it asked for.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use serde_json::Value;
use vramfit_arch::Model;
use vramfit_ggml::Type;
use vramfit_gguf::Header;

use crate::adapters::{make_adapter, shrunk};
use crate::case::flags_beside;
use crate::common::adapters::{Rule, Targets};
use crate::error::{Context, Error, Result};
use crate::kit::Engine;
use crate::models::{self, Entry, Set};

/// GPUs and flags of a case. Twelve GPUs show in which order llama.cpp goes through them.
const CASES: [(usize, &str); 2] = [
    (2, "-ngl 99 -c 4096 -ub 256 -fa on"),
    (12, "-ngl 99 -c 1024 -np 2 -fa off"),
];
/// The same with adapters, and the first layer that a control vector is for.
const ADAPTED: [(usize, &str, &[Rule], Option<u32>); 3] = [
    (2, "-ngl 99 -c 2048 -fa on", &[EVERY_LAYER], None),
    (3, "-ngl 99 -c 1024 -np 2 -fa off", &[], Some(1)),
    (
        12,
        "-ngl 99 -c 1024 -fa on",
        &[ATTENTION, EVERY_LAYER],
        Some(2),
    ),
];
const EVERY_LAYER: Rule = Rule {
    rank: 8,
    ty: Type::F16,
    targets: Targets::Layers,
    every: 1,
};
const ATTENTION: Rule = Rule {
    rank: 32,
    ty: Type::F32,
    targets: Targets::Attention,
    every: 2,
};
const TOTAL_BYTES: u64 = 80 << 30;
const CAPABILITY: &str = "8.6";

/// Loads every model and writes the table.
pub fn make(out: &Path) -> Result<()> {
    let mut text = String::from(
        "# engine: llama.cpp v0.5.0, CUDA 13 build, real loads on imaginary GPUs (crates/oracle/kit)\n\
         # made by: cargo run -p vramfit-oracle -- allocations\n\
         # model, gpus, flags: as in llama.cpp-v0.5.0-cuda13.tsv and adapters-llama.cpp-v0.5.0.tsv. allocations: GPU:BYTES of every cudaMalloc that is there when the model is loaded, in order.\n\
         # model\tgpus\tflags\tallocations\n",
    );
    let mut n_failed = 0;
    for set in [Set::Real, Set::Made] {
        for entry in &models::index(set)? {
            // With its adapters it is gone behind each model.
            let folder = tempfile::tempdir().context("a temporary folder")?;
            models::make_sparse(std::slice::from_ref(entry), folder.path())?;
            let model = folder.path().join(&entry.file);
            for (n_gpus, flags) in cases(entry, &model)? {
                match allocations(&model, n_gpus, &flags) {
                    Ok(list) => {
                        let gpus = vec![format!("{TOTAL_BYTES}:{CAPABILITY}"); n_gpus].join(",");
                        let _ = writeln!(text, "{}\t{gpus}\t{flags}\t{list}", entry.file);
                    }
                    Err(error) => {
                        n_failed += 1;
                        eprintln!("{} on {n_gpus} GPUs, {flags}: {error}", entry.file);
                    }
                }
            }
        }
    }
    let _ = writeln!(
        text,
        "# {n_failed} more loads were refused or crashed in the engine."
    );
    fs::write(out, text).context(out.display())
}

/// GPUs and flags of every case of a model, whose adapters are made.
fn cases(entry: &Entry, path: &Path) -> Result<Vec<(usize, String)>> {
    let plain = CASES.map(|(n_gpus, flags)| (n_gpus, flags.to_owned()));
    let mut cases = Vec::from(plain);
    let header = Header::open(path).context(&entry.file)?;
    let model = Model::load(&header).context(&entry.file)?;
    for (n_gpus, flags, rules, control_vector) in ADAPTED {
        let mut flags = flags.to_owned();
        for rule in rules {
            let rule = shrunk(*rule, &model)?;
            make_adapter(&rule, &model, path)?;
            let _ = write!(flags, " --lora {rule}");
        }
        if let Some(first) = control_vector {
            let _ = write!(flags, " --control-vector {first},{}", entry.n_layer);
        }
        cases.push((n_gpus, flags));
    }
    Ok(cases)
}

fn allocations(model: &Path, n_gpus: usize, flags: &str) -> Result<String> {
    let gpus = format!("{n_gpus}*G:{TOTAL_BYTES}:{CAPABILITY}");
    let flags = flags_beside(flags, &model.display());
    let mut words: Vec<&str> = flags.split(' ').collect();
    words.push("--real");
    let environment = [("VGPU", gpus.as_str()), ("VGPU_NO_OOM", "1")];
    let (json, trace) = Engine.ask_traced(&environment, model, &words)?;
    let list = live_after_load(&trace, &json)?;
    let texts: Vec<String> = list
        .iter()
        .map(|(gpu, bytes)| format!("{gpu}:{bytes}"))
        .collect();
    Ok(texts.join(" "))
}

/// The allocations that are there once the model is loaded: behind the last one, when each GPU holds what the answer says.
fn live_after_load(trace: &str, json: &Value) -> Result<Vec<(usize, u64)>> {
    let counted = json["result"]["cuda_malloc"]
        .as_array()
        .context("cuda_malloc")?;
    let counted: Vec<u64> = counted
        .iter()
        .filter_map(|gpu| gpu["bytes"].as_u64())
        .collect();
    let events: Vec<Event> = trace.lines().filter_map(Event::read).collect();
    let last = events
        .iter()
        .rposition(|event| event.is_taken)
        .context("no allocation")?;
    let mut live: Vec<(usize, u64)> = Vec::new();
    for (i, event) in events.iter().enumerate() {
        let pair = (event.gpu, event.bytes);
        match event.is_taken {
            true => live.push(pair),
            false => {
                let at = live.iter().rposition(|&held| held == pair);
                live.remove(at.context("what was never taken is given back")?);
            }
        }
        let sum = |gpu: usize| -> u64 { live.iter().filter(|l| l.0 == gpu).map(|l| l.1).sum() };
        if i >= last && (0..counted.len()).all(|gpu| sum(gpu) == counted[gpu]) {
            return Ok(live);
        }
    }
    Err(Error::new(
        "the trace never comes to what the answer counts",
    ))
}

/// `vgpu[0] cudaMalloc 133337856 -> ..` or `vgpu[0] cudaFree 133337856 ..`.
struct Event {
    gpu: usize,
    bytes: u64,
    is_taken: bool,
}

impl Event {
    fn read(line: &str) -> Option<Event> {
        let (gpu, rest) = line.strip_prefix("vgpu[")?.split_once("] ")?;
        let mut words = rest.split(' ');
        let is_taken = match words.next()? {
            "cudaMalloc" => true,
            "cudaFree" => false,
            _ => return None,
        };
        Some(Event {
            gpu: gpu.parse().ok()?,
            bytes: words.next()?.parse().ok()?,
            is_taken,
        })
    }
}
