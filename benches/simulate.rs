//! Graph and memory of one layout, both passes, on two GPUs: `cargo bench -p vramfit-estimate`.

use criterion::{Criterion, criterion_group, criterion_main};
use std::path::Path;
use vramfit_arch::Model;
use vramfit_estimate::{Breakdown, EngineProfile, FlashAttention, Layout, LayoutDevice, RunConfig};
use vramfit_ggml::ComputeCapability;
use vramfit_gguf::Header;

fn simulate(c: &mut Criterion) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/gguf");
    let mut run = RunConfig::default();
    run.n_ctx = 8192;
    run.flash_attention = FlashAttention::On;
    let device = LayoutDevice::new(ComputeCapability::new(8, 6));
    let layout = Layout {
        devices: vec![device; 2],
        ..Layout::default()
    };
    let profile = EngineProfile::LLAMA_CPP_V0_5_0;
    let mut group = c.benchmark_group("graph and memory, 2 GPUs, both passes");
    for name in ["llama-3.1-70b", "deepseek-v3", "gemma-3-12b"] {
        let header = Header::open(folder.join(format!("{name}.Q4_K_M.gguf")));
        let Some(model) = header.ok().and_then(|h| Model::load(&h).ok()) else {
            continue;
        };
        group.bench_function(name, |b| {
            b.iter(|| Breakdown::estimate(&model, &run, &layout, &profile))
        });
    }
    group.finish();
}

criterion_group!(benches, simulate);
criterion_main!(benches);
