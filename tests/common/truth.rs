//! Reads the truth tables and turns llama.cpp's flags into settings.

use super::adapters::Rule;
use super::fixture;
use regex::Regex;
use std::collections::BTreeMap;
use std::fmt::Write;
use vramfit_arch::{Adapters, CpuRepack, Model, Pooling, TensorOverride};
use vramfit_estimate::{
    Breakdown, EngineProfile, Error, FlashAttention, Layout, LayoutDevice, MemoryBytes, Outputs,
    RunConfig,
};
use vramfit_ggml::{BufferType, ComputeCapability, Type};
use vramfit_gguf::Header;

/// The engine's reason for a refusal, and what ours says of the same.
const REASONS: [(&str, &str); 6] = [
    ("SPLIT_MODE_TENSOR not implemented", "does not share out"),
    (
        "SPLIT_MODE_TENSOR requires flash_attn",
        "needs flash attention",
    ),
    ("does not divide n_embd_head", "which do not divide"),
    (
        "failed to allocate buffer for kv cache",
        "a KV cache of nothing",
    ),
    (
        "quantized V cache requires flash_attn",
        "needs flash attention",
    ),
    (
        "model does not support different K",
        "keeps K and V in one cache",
    ),
];

/// How a case ended in the real engine.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Status {
    Ok,
    Refused,
    Crashed,
}

/// One case.
pub struct Row {
    pub model: String,
    pub gpus: String,
    pub flags: String,
    pub status: Status,
    /// The engine's figures in one line, or why it refused.
    pub expected: String,
}

/// A GPU of a case, by its index in the machine.
#[derive(Clone, Copy)]
pub struct Gpu {
    pub index: usize,
    pub total_bytes: u64,
    pub compute_capability: ComputeCapability,
}

pub fn rows(path: &str) -> Vec<Row> {
    let text = std::fs::read_to_string(fixture(path)).unwrap();
    text.lines()
        .filter(|l| !l.starts_with('#') && !l.is_empty())
        .map(row)
        .collect()
}

/// One line of a table.
pub fn row(line: &str) -> Row {
    let columns: Vec<&str> = line.split('\t').collect();
    let status = match columns[3].split(':').next() {
        Some("ok") => Status::Ok,
        Some("refused") => Status::Refused,
        _ => Status::Crashed,
    };
    let [model, gpus, flags] = [0, 1, 2].map(|i| columns[i].to_string());
    Row {
        model,
        gpus,
        flags,
        status,
        expected: figures_of(&columns[3..]),
    }
}

/// The engine's figures in one line, of the columns from the status on.
pub fn figures_of(columns: &[&str]) -> String {
    match *columns {
        [
            "ok",
            n_ctx,
            seq,
            batch,
            ubatch,
            fa,
            copies,
            layers,
            memory,
            graph,
        ] => format!(
            "n_ctx {n_ctx} {seq} n_batch {batch} {ubatch} fa {fa} copies {copies} layers {layers} {memory} {}",
            full_graph(graph)
        ),
        _ => columns[0].to_string(),
    }
}

/// Nodes and splits of both passes; llama.cpp's log writes them once where they are equal.
fn full_graph(graph: &str) -> String {
    if graph.contains(' ') {
        graph.to_string()
    } else {
        format!("{graph} {graph}")
    }
}

/// Every row of a table of `n` loads is exact; one cut short must not pass.
pub fn check(table: &str, n: usize) {
    let rows = rows(table);
    assert_eq!(rows.len(), n);
    assert!(rows.iter().all(|row| row.status != Status::Crashed));
    let mut models: BTreeMap<&str, Model> = BTreeMap::new();
    let mut wrong = Vec::new();
    for row in &rows {
        let model = models.entry(&row.model).or_insert_with(|| {
            let header = Header::open(fixture(&format!("gguf/{}", row.model))).unwrap();
            Model::load(&header).unwrap()
        });
        let got = row.estimate(model);
        if !row.agrees(&got) {
            let (gpus, flags, expected) = (&row.gpus, &row.flags, &row.expected);
            let case = format!("{} | {gpus} | {flags}", row.model);
            wrong.push(format!("{case}\n  engine {expected}\n  ours   {got}"));
        }
    }
    let n_wrong = wrong.len();
    assert!(
        n_wrong == 0,
        "{n_wrong} of {n} rows differ:\n{}",
        wrong.join("\n")
    );
}

/// Run-length code of a list.
pub fn runs<T: PartialEq + Copy>(list: &[T]) -> Vec<(T, usize)> {
    let mut runs: Vec<(T, usize)> = Vec::new();
    for &x in list {
        match runs.last_mut() {
            Some((y, n)) if *y == x => *n += 1,
            _ => runs.push((x, 1)),
        }
    }
    runs
}

/// `[model, context, compute]` by memory, of a row or of our answer to it: `CUDA0=1/2/3 host=4/5/6`.
pub fn memories(text: &str) -> Option<BTreeMap<&str, [u64; 3]>> {
    let one = |word: &str| -> Option<[u64; 3]> {
        let numbers: Option<Vec<u64>> = word.split('/').map(|n| n.parse().ok()).collect();
        numbers?.try_into().ok()
    };
    let words = text.split(' ').filter_map(|word| word.split_once('='));
    words.map(|(name, word)| Some((name, one(word)?))).collect()
}

/// With `-sm tensor`: the largest figures of any GPU, then what each takes in all.
fn shared_out(devices: &[Gpu], b: &Breakdown) -> String {
    let most = |of: fn(&MemoryBytes) -> u64| b.devices.iter().map(of).max().unwrap_or(0);
    let (model, compute) = (most(|m| m.model), most(|m| m.compute));
    let mut text = format!(" Meta={model}/{compute}");
    let mut each: Vec<_> = devices.iter().zip(&b.devices).zip(&b.runtime).collect();
    each.sort_by_key(|((device, _), _)| device.index);
    for ((device, m), runtime) in each {
        // the pipeline is made at once, copies when something is computed
        let volta = |d: &Gpu| d.compute_capability.0 >= 700;
        let has_pipeline = devices.len() == 2 && devices.iter().all(volta);
        let pipeline = if has_pipeline { 32 << 20 } else { 0 };
        assert!(runtime.reduce_bytes >= pipeline && runtime.is_bound);
        let bytes = m.sum() + pipeline;
        let _ = write!(text, " CUDA{}:{bytes}", device.index);
    }
    text
}

impl Row {
    pub fn flag(&self, name: &str) -> Option<&str> {
        let mut words = self.flags.split(' ');
        words.find(|w| *w == name)?;
        words.next()
    }

    /// The values of a flag that may stand there more than once.
    fn flags(&self, name: &str) -> impl Iterator<Item = &str> {
        let words: Vec<&str> = self.flags.split(' ').collect();
        let named = (1..words.len()).filter(move |&i| words[i - 1] == name);
        named.filter_map(|i| self.flags.split(' ').nth(i))
    }

    /// LoRA adapters by rule, and the layers of a control vector.
    fn adapters(&self, model: &Model) -> Result<Adapters, String> {
        let lora = |rule| Rule::read(rule).ok_or(rule.to_string())?.lora(model);
        let range = |text: &str| {
            let (first, last) = text.split_once(',').unwrap();
            [first, last].map(|n| n.parse().unwrap())
        };
        Ok(Adapters {
            loras: self.flags("--lora").map(lora).collect::<Result<_, _>>()?,
            control_vector: self.flag("--control-vector").map(range),
        })
    }

    pub fn has(&self, name: &str) -> bool {
        self.flags.split(' ').any(|w| w == name)
    }

    pub fn number<T: std::str::FromStr>(&self, name: &str, default: T) -> T
    where
        T::Err: std::fmt::Debug,
    {
        self.flag(name).map_or(default, |v| v.parse().unwrap())
    }

    /// The GPUs that llama.cpp uses, in order.
    pub fn devices(&self) -> Vec<Gpu> {
        if self.gpus == "-" {
            return Vec::new();
        }
        let gpu = |(index, text): (usize, &str)| {
            let (total, cc) = text.split_once(':').unwrap();
            let compute_capability = cc.parse().unwrap();
            Gpu {
                index,
                total_bytes: total.parse().unwrap(),
                compute_capability,
            }
        };
        let mut gpus: Vec<Gpu> = self.gpus.split(',').enumerate().map(gpu).collect();
        match self.flag("-dev") {
            Some("none") => gpus.clear(),
            Some(names) => {
                let names: Vec<&str> = names.split(',').collect();
                let of = |n: &&str| gpus[n["CUDA".len()..].parse::<usize>().unwrap()];
                gpus = names.iter().map(of).collect();
            }
            None => {}
        }
        if self.flag("-sm") == Some("none") && !gpus.is_empty() {
            gpus = vec![gpus[self.number("-mg", 0usize)]];
        }
        gpus
    }

    /// What vramfit says, written as the table writes it.
    pub fn estimate(&self, model: &Model) -> String {
        let devices = self.devices();
        let (run, layout) = match self.settings(&devices, model) {
            Ok(settings) => settings,
            Err(error) => return format!("refused: {error}"),
        };
        let breakdown = Breakdown::estimate(model, &run, &layout, &EngineProfile::LLAMA_CPP_V0_5_0);
        let b = match breakdown {
            Ok(b) => b,
            Err(Error::Refused(refusal)) => return format!("refused: {refusal}"),
            Err(error) => return format!("error: {error}"),
        };
        Self::figures(&b, &devices)
    }

    /// A breakdown as the table writes it.
    pub fn figures(b: &Breakdown, devices: &[Gpu]) -> String {
        let p = &b.params;
        let mut text = format!(
            "n_ctx {} {} n_batch {} {} fa {} copies {} layers",
            p.n_ctx, p.n_ctx_seq, p.n_batch, p.n_ubatch, p.flash_attn as u8, b.pipeline_copies
        );
        for (device, n) in runs(&b.layers) {
            let name = match device {
                None => "host".to_string(),
                Some(_) if b.split_tensors => "Meta".to_string(),
                Some(d) => format!("CUDA{}", devices[d].index),
            };
            let _ = write!(text, " {name}*{n}");
        }
        if b.split_tensors {
            text += &shared_out(devices, b);
        }
        for (device, m) in devices.iter().zip(&b.devices) {
            if b.split_tensors {
                continue;
            }
            let _ = write!(
                text,
                " CUDA{}={}/{}/{}",
                device.index, m.model, m.context, m.compute
            );
            if !p.adapters.is_empty() {
                let _ = write!(text, "/{}", m.adapters);
            }
        }
        let _ = write!(
            text,
            " host={}/{}/{}",
            b.host.model, b.host.context, b.host.compute
        );
        if b.host_repacked_bytes > 0 {
            let _ = write!(text, " CPU_REPACK={}/0/0", b.host_repacked_bytes);
        }
        let [pp, tg] = b.passes;
        let _ = write!(
            text,
            " {}/{} {}/{}",
            pp.n_nodes, pp.n_splits, tg.n_nodes, tg.n_splits
        );
        text
    }

    /// Whether vramfit's answer is the engine's: every figure, or the same reason to refuse.
    pub fn agrees(&self, got: &str) -> bool {
        match self.status {
            Status::Refused => REASONS
                .iter()
                .any(|(theirs, ours)| self.expected.contains(theirs) && got.contains(ours)),
            _ => got == self.expected,
        }
    }

    pub fn settings(&self, gpus: &[Gpu], model: &Model) -> Result<(RunConfig, Layout), String> {
        let mut run = self.run();
        run.adapters = self.adapters(model)?;
        Ok((run, self.layout(gpus, model)?))
    }

    fn run(&self) -> RunConfig {
        let ty = |name: &str| Type::from_name(self.flag(name).unwrap_or("f16")).unwrap();
        let mut run = RunConfig::default();
        run.n_ctx = self.number("-c", 4096);
        run.n_batch = self.number("-b", 2048);
        run.n_ubatch = self.number("-ub", 512);
        run.n_seq_max = self.number("-np", 1);
        run.kv_unified = self.number("--kv-unified", 0u8) != 0;
        run.flash_attention = match self.flag("-fa") {
            Some("on") => FlashAttention::On,
            Some("off") => FlashAttention::Off,
            _ => FlashAttention::Auto,
        };
        (run.type_k, run.type_v) = (ty("-ctk"), ty("-ctv"));
        run.offload_kqv = !self.has("-nkvo");
        run.op_offload = !self.has("--no-op-offload");
        run.swa_full = self.number("--swa-full", 0u8) != 0;
        run.use_mmap = !self.has("--no-mmap");
        if self.has("--no-repack") {
            run.cpu_repack = CpuRepack::Off;
        }
        run.pinned_host = !self.has("--no-host");
        run.embeddings = self.has("--embeddings");
        run.pooling = self
            .flag("--pooling")
            .map(|n| Pooling::from_id(n.parse().unwrap()).unwrap());
        run.outputs = match self.number("--n-outputs", 0) {
            0 => Outputs::EveryToken,
            n => Outputs::AtMost(n),
        };
        run
    }

    fn layout(&self, gpus: &[Gpu], _: &Model) -> Result<Layout, String> {
        let device = |g: &Gpu| LayoutDevice::new(g.compute_capability);
        let split = match self.flag("-ts") {
            Some(shares) => shares.split(',').map(|s| s.parse().unwrap()).collect(),
            None => Vec::new(),
        };
        let by_free = || gpus.iter().map(|g| g.total_bytes as f32).collect();
        let given = split.iter().any(|&x: &f32| x != 0.0);
        let split_tensors = self.flag("-sm") == Some("tensor");
        Ok(Layout {
            devices: gpus.iter().map(device).collect(),
            n_gpu_layers: u32::try_from(self.number("-ngl", -1i64)).ok(),
            tensor_split: match given || split_tensors {
                true => split,
                false => by_free(),
            },
            split_tensors,
            overrides: self.overrides(gpus)?,
        })
    }

    fn overrides(&self, gpus: &[Gpu]) -> Result<Vec<TensorOverride>, String> {
        let mut overrides = Vec::new();
        let host = BufferType::HOST;
        let mut add = |pattern: &str, buffer| {
            overrides.push(TensorOverride {
                pattern: Regex::new(pattern).unwrap(),
                buffer,
            });
        };
        const EXPERTS: &str = r"\.ffn_(up|down|gate|gate_up)_(ch|)exps";
        for entry in self.flag("-ot").iter().flat_map(|v| v.split(',')) {
            let (pattern, target) = entry.split_once('=').unwrap();
            let buffer = match target.strip_prefix("CUDA") {
                None => host,
                Some(index) => {
                    let index: usize = index.parse().unwrap();
                    let found = gpus.iter().position(|g| g.index == index);
                    BufferType::device(found.ok_or("an override to a GPU not in use")?)
                }
            };
            add(pattern, buffer);
        }
        if self.has("--cpu-moe") {
            add(EXPERTS, host);
        }
        for il in 0..self.number("--n-cpu-moe", 0usize) {
            add(&format!(r"blk\.{il}{EXPERTS}"), host);
        }
        Ok(overrides)
    }
}
