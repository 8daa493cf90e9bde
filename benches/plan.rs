//! A whole plan for eight unequal GPUs: `cargo bench -p vramfit-plan`.

use criterion::{Criterion, criterion_group, criterion_main};
use std::path::Path;
use vramfit_arch::Model;
use vramfit_estimate::{EngineProfile, RunConfig};
use vramfit_ggml::ComputeCapability;
use vramfit_gguf::Header;
use vramfit_plan::{Allowance, Device, Policy, plan};

const GIB: u64 = 1 << 30;

fn devices() -> Vec<Device> {
    let sizes = [24, 12, 16, 8, 24, 10, 12, 6];
    let device = |(i, &gib): (usize, &u64)| Device {
        name: format!("GPU {i}"),
        total_bytes: gib * GIB,
        free_bytes: gib * GIB,
        compute_capability: ComputeCapability::new(8, 6),
        sm_count: Some(82),
        integrated: false,
        pool: Default::default(),
        overhead: Allowance::new(400 << 20, "bench"),
    };
    sizes.iter().enumerate().map(device).collect()
}

fn whole_plan(c: &mut Criterion) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/gguf");
    let devices = devices();
    let profile = EngineProfile::LLAMA_CPP_V0_5_0;
    let mut group = c.benchmark_group("plan, 8 unequal GPUs");
    group.sample_size(20);
    for name in ["llama-3.1-8b", "llama-3.1-70b", "deepseek-v3"] {
        let header = Header::open(folder.join(format!("{name}.Q4_K_M.gguf")));
        let Some(model) = header.ok().and_then(|h| Model::load(&h).ok()) else {
            continue;
        };
        let run = RunConfig::default();
        group.bench_function(name, |b| {
            b.iter(|| plan(&model, &run, &devices, &Policy::default(), &profile))
        });
    }
    group.finish();
}

criterion_group!(benches, whole_plan);
criterion_main!(benches);
