//! Headers that lie: keys and tensors of models changed at random. Whatever they say, there is
//! an answer or an error, never a panic. Built with overflow checks, so wrapping counts as one.
//!
//! `VRAMFIT_ROBUST_CASES=200000 cargo test -p vramfit-estimate --test robust` for a long run.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    clippy::disallowed_types
)] // tests read files and may panic

mod common;

use common::fixture;
use vramfit_arch::{Adapters, Lora, Model};
use vramfit_estimate::{
    Breakdown, EngineProfile, FlashAttention, Layout, LayoutDevice, Outputs, Peak, RunConfig,
};
use vramfit_ggml::{ComputeCapability, Type};
use vramfit_gguf::{Header, Value, Writer};

/// splitmix64: the same cases on every machine.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    /// A number that is trouble, or near `usual`.
    fn number(&mut self, usual: i64) -> i64 {
        const TROUBLE: [i64; 12] = [
            0,
            1,
            2,
            3,
            7,
            31,
            255,
            65_536,
            1 << 22,
            i32::MAX as i64,
            u32::MAX as i64,
            i64::MAX,
        ];
        match self.below(4) {
            0 => usual.wrapping_add(self.below(5) as i64 - 2),
            1 => usual.saturating_mul(2),
            2 => usual / 2,
            _ => TROUBLE[self.below(TROUBLE.len() as u64) as usize],
        }
    }
}

/// The header of a model with some keys and tensors changed; `None` where the writer refuses.
fn lie(header: &Header, random: &mut Random) -> Option<Vec<u8>> {
    let mut writer = Writer::new();
    for (name, value) in header.keys() {
        let number = value.as_i64();
        match (number, &value) {
            _ if random.one_in(40) => {}
            (Some(n), _) if random.one_in(6) => {
                let n = random.number(n);
                match value {
                    // now and then wider than the type that writers use
                    Value::U32(_) if !random.one_in(4) => writer.key(name, n as u32).ok()?,
                    Value::I32(_) => writer.key(name, n as i32).ok()?,
                    _ => writer.key(name, n as u64).ok()?,
                };
            }
            (_, Value::Array(a)) if random.one_in(3) => {
                let numbers: Option<Vec<i64>> = a.iter().map(|v| v.as_i64()).collect();
                let Some(numbers) = numbers else {
                    writer.copy_key(name, value);
                    continue;
                };
                let changed: Vec<u32> =
                    numbers.iter().map(|&n| if random.one_in(8) { random.number(n) } else { n } as u32).collect();
                writer.key(name, changed).ok()?;
            }
            _ => {
                writer.copy_key(name, value);
            }
        }
    }
    for t in header.tensors() {
        let mut ne = t.ne;
        if random.one_in(400) {
            continue;
        }
        if random.one_in(200) {
            let i = random.below(4) as usize;
            ne[i] = random.number(ne[i]).clamp(0, 1 << 40);
        }
        writer.tensor(&t.name, t.ty, &ne[..t.n_dims as usize]);
    }
    writer.finish().ok()
}

fn settings(random: &mut Random) -> (RunConfig, Layout) {
    const TYPES: [Type; 4] = [Type::F16, Type::Q8_0, Type::F32, Type::Q4_0];
    let mut run = RunConfig::default();
    run.n_ctx = random.number(4096) as u32;
    run.n_batch = random.number(2048) as u32;
    run.n_ubatch = random.number(512) as u32;
    run.n_seq_max = random.number(2) as u32 % 300;
    run.kv_unified = random.one_in(2);
    run.flash_attention = [
        FlashAttention::Auto,
        FlashAttention::On,
        FlashAttention::Off,
    ][random.below(3) as usize];
    run.type_k = TYPES[random.below(4) as usize];
    run.type_v = TYPES[random.below(4) as usize];
    run.embeddings = random.one_in(4);
    run.outputs = if random.one_in(2) {
        Outputs::EveryToken
    } else {
        Outputs::PerSequence
    };
    let cc = [370, 610, 750, 860, 1200][random.below(5) as usize];
    let device = LayoutDevice::new(ComputeCapability(cc));
    let layout = Layout {
        devices: vec![device; random.below(4) as usize],
        n_gpu_layers: random.one_in(2).then(|| random.below(40) as u32),
        tensor_split: vec![1.0; random.below(4) as usize],
        split_tensors: random.one_in(5),
        overrides: Vec::new(),
    };
    (run, layout)
}

/// What lies beside a model, made for another or none.
fn adapters(model: &Model, random: &mut Random) -> Adapters {
    let named = model.tensors.iter().filter(|_| random.one_in(3)).take(40);
    let mut writer = Writer::new();
    writer.key("general.type", "adapter").unwrap();
    writer.key("adapter.type", "lora").unwrap();
    let architecture = model.architecture_name.as_str();
    writer.key("general.architecture", architecture).unwrap();
    let named: Vec<_> = named.collect();
    for t in named {
        let rank = random.number(16).clamp(1, 1 << 20);
        writer.tensor(&format!("{}.lora_a", t.name), Type::F16, &[t.ne[0], rank]);
        writer.tensor(&format!("{}.lora_b", t.name), Type::F16, &[rank, t.ne[1]]);
    }
    let header = writer.finish().ok().and_then(|b| Header::parse(b).ok());
    let lora = header.and_then(|h| Lora::load(&h, model).ok());
    let layer = |random: &mut Random| random.number(8) as usize;
    Adapters {
        loras: lora.into_iter().collect(),
        control_vector: random.one_in(2).then(|| [layer(random), layer(random)]),
    }
}

#[test]
fn lies_are_refused_or_sized() {
    let n: u64 = std::env::var("VRAMFIT_ROBUST_CASES").map_or(1_500, |n| n.parse().unwrap());
    let in_folder = |folder| std::fs::read_dir(fixture(folder)).unwrap();
    let mut headers: Vec<_> = in_folder("gguf")
        .chain(in_folder("gguf/made"))
        .map(|e| e.unwrap().path())
        .filter(|p| p.extension().is_some_and(|e| e == "gguf"))
        .collect();
    headers.sort();
    let headers: Vec<Header> = headers.iter().map(|p| Header::open(p).unwrap()).collect();
    let profile = EngineProfile::LLAMA_CPP_V0_5_0;
    let (mut read, mut sized, mut adapted) = (0u64, 0u64, 0u64);
    for seed in 0..n {
        let random = &mut Random(seed);
        let header = &headers[random.below(headers.len() as u64) as usize];
        let Some(bytes) = lie(header, random) else {
            continue;
        };
        let Ok(header) = Header::parse(bytes) else {
            continue;
        };
        read += 1;
        // as unknown, more headers are models
        let load = match random.one_in(4) {
            true => Model::load_as_unknown,
            false => Model::load,
        };
        let Ok(model) = load(&header) else {
            continue;
        };
        let (mut run, layout) = settings(random);
        if random.one_in(3) {
            run.adapters = adapters(&model, random);
        }
        let result = std::panic::catch_unwind(|| {
            let estimate = Breakdown::estimate(&model, &run, &layout, &profile);
            let _ = Peak::explain(&model, &run, &layout, &profile);
            estimate.is_ok()
        });
        match result {
            Ok(ok) => {
                sized += u64::from(ok);
                adapted += u64::from(ok && !run.adapters.loras.is_empty());
            }
            Err(_) => panic!("seed {seed}: {:?} {run:?} {layout:?}", model.architecture),
        }
    }
    // Most headers must get past the reader, and some past everything, or nothing was tried.
    assert!(
        read * 2 > n && sized * 20 > n && adapted > 0,
        "{read} read, {sized} sized and {adapted} with adapters of {n}"
    );
}
