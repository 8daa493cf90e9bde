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
use crate::drafts::{pairs, sparse};
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

/// The same with a draft beside the model.
const DRAFTED: [(usize, &str); 2] = [
    (2, "-ngl 99 -c 4096 -fa on -np 2 --n-outputs 8"),
    (12, "-ngl 99 -c 2048 -fa on --n-outputs 4"),
];
const DRAFT: &str = "-md";

/// Rows, and how many loads have none.
#[derive(Default)]
struct Table {
    text: String,
    n_failed: usize,
}

impl Table {
    fn add(&mut self, folder: &Path, file: &str, n_gpus: usize, flags: &str) {
        match allocations(folder, file, n_gpus, flags) {
            Ok(list) => {
                let gpus = vec![format!("{TOTAL_BYTES}:{CAPABILITY}"); n_gpus].join(",");
                let _ = writeln!(self.text, "{file}\t{gpus}\t{flags}\t{list}");
            }
            Err(error) => {
                self.n_failed += 1;
                eprintln!("{file} on {n_gpus} GPUs, {flags}: {error}");
            }
        }
    }
}

/// Loads every model, and every pair of a target and its draft, and writes the table.
pub fn make(out: &Path) -> Result<()> {
    let mut text = String::from(
        "# engine: llama.cpp v0.5.0, CUDA 13 build, real loads on imaginary GPUs (crates/oracle/kit)\n\
         # made by: cargo run -p vramfit-oracle -- allocations\n\
         # model, gpus, flags: as in llama.cpp-v0.5.0-cuda13.tsv and adapters-llama.cpp-v0.5.0.tsv. allocations: GPU:BYTES of every cudaMalloc that is there when the model is loaded, in order.\n\
         # model\tgpus\tflags\tallocations\n",
    );
    let mut table = Table::default();
    for set in [Set::Real, Set::Made] {
        for entry in &models::index(set)? {
            // With its adapters it is gone behind each model.
            let folder = tempfile::tempdir().context("a temporary folder")?;
            models::make_sparse(std::slice::from_ref(entry), folder.path())?;
            for (n_gpus, flags) in cases(entry, &folder.path().join(&entry.file))? {
                table.add(folder.path(), &entry.file, n_gpus, &flags);
            }
        }
    }
    let folder = tempfile::tempdir().context("a temporary folder")?;
    for pair in pairs()?.iter().filter(|pair| !pair.shared_out) {
        let beside = match &pair.draft {
            Some(draft) => format!(" {DRAFT} {draft}"),
            None => String::new(),
        };
        for file in [Some(&pair.target), pair.draft.as_ref()]
            .into_iter()
            .flatten()
        {
            sparse(file, folder.path())?;
        }
        for (n_gpus, flags) in DRAFTED {
            let flags = format!("{flags} --spec-type {}{beside}", pair.kind);
            table.add(folder.path(), &pair.target, n_gpus, &flags);
        }
    }
    text += &table.text;
    let n_failed = table.n_failed;
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

fn allocations(folder: &Path, file: &str, n_gpus: usize, flags: &str) -> Result<String> {
    let gpus = format!("{n_gpus}*G:{TOTAL_BYTES}:{CAPABILITY}");
    let model = &folder.join(file);
    let flags = flags_beside(flags, &model.display());
    let flags = flags.replace(
        &format!("{DRAFT} "),
        &format!("{DRAFT} {}/", folder.display()),
    );
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
    let mut live: Vec<&Event> = Vec::new();
    for (i, event) in events.iter().enumerate() {
        match event.is_taken {
            true => live.push(event),
            false => {
                let at = live.iter().position(|held| held.address == event.address);
                live.remove(at.context("what was never taken is given back")?);
            }
        }
        let sum = |gpu: usize| -> u64 {
            let own = live.iter().filter(|held| held.gpu == gpu);
            own.map(|held| held.bytes).sum()
        };
        if i >= last && (0..counted.len()).all(|gpu| sum(gpu) == counted[gpu]) {
            return Ok(live.iter().map(|held| (held.gpu, held.bytes)).collect());
        }
    }
    Err(Error::new(
        "the trace never comes to what the answer counts",
    ))
}

/// `vgpu[0] cudaMalloc 133337856 -> 0x7f52.. ..`, or the same of `cudaFree`.
struct Event<'a> {
    gpu: usize,
    bytes: u64,
    address: &'a str,
    is_taken: bool,
}

impl<'a> Event<'a> {
    fn read(line: &'a str) -> Option<Event<'a>> {
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
            address: words.nth(1)?,
            is_taken,
        })
    }
}
