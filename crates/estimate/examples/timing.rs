//! How long one estimate takes: `timing MODEL [N]`.
use std::time::Instant;
use vramfit_arch::Model;
use vramfit_estimate::{Breakdown, EngineProfile, FlashAttention, Layout, LayoutDevice, RunConfig};
use vramfit_ggml::ComputeCapability;
fn main() {
    let mut args = std::env::args().skip(1);
    let path = args.next().unwrap();
    let n: usize = args.next().map_or(50, |n| n.parse().unwrap());
    let model = Model::load(&vramfit_gguf::Header::open(&path).unwrap()).unwrap();
    let mut run = RunConfig::default();
    run.n_ctx = 8192;
    run.flash_attention = FlashAttention::On;
    let d = LayoutDevice {
        compute_capability: ComputeCapability(860),
        integrated: false,
    };
    let layout = Layout {
        devices: vec![d; 2],
        ..Layout::default()
    };
    let mut t: Vec<u128> = (0..n)
        .map(|_| {
            let t = Instant::now();
            let b = Breakdown::estimate(&model, &run, &layout, &EngineProfile::LLAMA_CPP_V0_5_0)
                .unwrap();
            std::hint::black_box(b);
            t.elapsed().as_micros()
        })
        .collect();
    t.sort();
    println!("{path}: min {} median {} us", t[0], t[n / 2]);
}
