//! Random situations that make a plan hard: GPUs a little or much too small for the model.

use crate::case::Gpu;
use crate::models::Model;
use crate::random::Random;

const SEED: u64 = 77_014;

/// A model, GPUs and what the user asked for.
pub struct Situation {
    /// Index into the models.
    pub model: usize,
    /// The GPUs.
    pub gpus: Vec<Gpu>,
    /// The user's flags, common to estimate, llama-server and the oracle.
    pub flags: String,
}

/// `n` situations, models in turn.
pub fn situations(models: &[Model], n: usize) -> Vec<Situation> {
    let mut random = Random::new(SEED, "plans");
    let one = |i: usize| {
        let model = i % models.len().max(1);
        situation(&mut random, model, &models[model])
    };
    if models.is_empty() {
        Vec::new()
    } else {
        (0..n).map(one).collect()
    }
}

fn situation(random: &mut Random, index: usize, model: &Model) -> Situation {
    let n_parallel = random.weighted(&[(1, 60), (2, 15), (4, 25)]);
    let n_ubatch = random.weighted(&[(512, 65), (128, 10), (1024, 12), (2048, 13)]);
    let flash_attn = random.weighted(&[("on", 60), ("off", 20), ("auto", 20)]);
    let cache_type = if flash_attn == "off" {
        "f16"
    } else {
        random.weighted(&[("f16", 60), ("q8_0", 30), ("q4_0", 10)])
    };
    let mut n_ctx = random.weighted(&[
        (2048, 20),
        (4096, 30),
        (8192, 25),
        (16_384, 15),
        (32_768, 10),
    ]);
    // Any layer may stay on the host, whose memory is real here: cache and attention scores are bounded.
    let host = |n: u64| {
        n * model.cache_bytes_per_token
            + n * n_ubatch * model.n_head * if flash_attn == "off" { 4 } else { 0 }
    };
    while n_ctx > 512 && host(n_ctx) > 3 << 28 {
        n_ctx /= 2;
    }
    let mut flags = format!("-c {n_ctx} -np {n_parallel} -fa {flash_attn}");
    if n_ubatch != 512 {
        flags += &format!(" -ub {n_ubatch}");
    }
    if cache_type != "f16" {
        flags += &format!(" -ctk {cache_type} -ctv {cache_type}");
    }
    let wanted = model.entry.file_bytes + n_ctx * model.cache_bytes_per_token;
    Situation {
        model: index,
        gpus: gpus(random, wanted),
        flags,
    }
}

/// GPUs with 30 to 140 percent of the wanted memory between them, if cards of that size exist; a GPU never has less than 1 GiB.
fn gpus(random: &mut Random, wanted: u64) -> Vec<Gpu> {
    const MIB: [u64; 15] = [
        1024, 2048, 3072, 4096, 6144, 8192, 10_240, 11_441, 12_288, 16_384, 24_576, 32_768, 49_140,
        81_079, 144_384,
    ];
    const CAPABILITIES: [&str; 8] = ["3.7", "6.1", "7.0", "7.5", "8.0", "8.6", "8.9", "9.0"];
    let n = random.weighted(&[(1, 35), (2, 35), (3, 12), (4, 18)]);
    let capability = random.pick(&CAPABILITIES).to_owned();
    let share = wanted * (30 + random.below(111)) / 100 / n;
    let nearest = |bytes: u64| {
        MIB.iter()
            .copied()
            .min_by_key(|mib| (mib << 20).abs_diff(bytes))
            .unwrap_or(MIB[0])
    };
    let equal = random.chance(60);
    let one = |random: &mut Random| {
        let bytes = if equal {
            share
        } else {
            share * (40 + random.below(130)) / 100
        };
        Gpu {
            total_bytes: nearest(bytes) << 20,
            compute_capability: capability.clone(),
        }
    };
    (0..n).map(|_| one(random)).collect()
}
