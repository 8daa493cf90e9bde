//! Every split of small cases, one by one: none is better than what the search finds.

use super::*;

/// All ways to put layers on one GPU or two: layers on GPUs, GPUs, bytes on each.
fn all_splits(model: &Model, run: &RunConfig, overrides: &[TensorOverride]) -> Vec<Split> {
    let n = model.hparams.n_layer_all + 1;
    let mut splits = Vec::new();
    let mut add = |counts: &[usize], overrides: &[TensorOverride]| {
        let total = counts.iter().sum();
        let layout = Layout {
            devices: vec![LayoutDevice::new(ComputeCapability::new(8, 6)); counts.len()],
            n_gpu_layers: Some(total as u32),
            tensor_split: counts.iter().map(|&c| c as f32).collect(),
            overrides: overrides.to_vec(),
            ..Layout::default()
        };
        let b = Breakdown::estimate(model, run, &layout, &PROFILE).unwrap();
        let bytes = b.devices.iter().zip(&b.runtime);
        let needed = bytes.map(|(m, r)| m.sum() + r.sum() + OVERHEAD).collect();
        splits.push((total, needed));
    };
    for total in 1..=n {
        add(&[total], overrides);
        for a in 0..=total {
            add(&[a, total - a], overrides);
            if total == n && overrides.is_empty() {
                add(&[a, total - a], &[to_host("matches nothing")]);
            }
        }
    }
    splits
}

type Split = (usize, Vec<u64>);

/// The most layers, and on how few GPUs if it is all of them.
fn brute_force(splits: &[Split], n: usize, free: &[u64; 2]) -> (usize, usize) {
    let fits = |needed: &[u64], gpus: &[u64]| needed.iter().zip(gpus).all(|(n, f)| n <= f);
    let (mut most, mut fewest) = (0, 0);
    for (total, needed) in splits {
        let k = needed.len();
        let found = (0..=2 - k).any(|i| fits(needed, &free[i..i + k]));
        if found && (*total > most || (*total == n && *total == most && k < fewest)) {
            (most, fewest) = (*total, k);
        }
    }
    (most, if most == n { fewest } else { 0 })
}

/// A small generator: the cases are the same every time.
struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % n
    }

    /// Two GPUs with a tenth to one and a half of `needed` between them.
    fn gpus(&mut self, needed: u64) -> [u64; 2] {
        let share = needed * (10 + self.below(140)) / 200;
        [0, 1].map(|_| share * (30 + self.below(140)) / 100 + OVERHEAD)
    }
}

#[test]
fn no_split_puts_more_layers_on_the_gpus() {
    let mut random = Random(88_172_645_463_325_252);
    for (name, n_ctx, cases) in [
        ("qwen2.5-0.5b.Q4_K_M", 4096, 120),
        ("llama-3.2-1b.Q4_K_M", 16_384, 120),
        ("lfm2-1.2b.Q4_K_M", 8192, 80),
    ] {
        let (model, run) = (model(name), run(n_ctx));
        let n = model.hparams.n_layer_all + 1;
        let splits = all_splits(model, &run, &[]);
        let full = splits.iter().find(|(total, _)| *total == n).unwrap().1[0];
        let mut seen = [0; 3];
        for _ in 0..cases {
            let free = random.gpus(full);
            let gpus = free.map(|f| device(f, "8.6"));
            let placement = plan(model, &run, &gpus, &Policy::default(), &PROFILE).unwrap();
            verify(model, &gpus, &placement);
            let got: usize = layers(&placement).iter().sum();
            let used = if got == n {
                placement.layout_devices.len()
            } else {
                0
            };
            let best = brute_force(&splits, n, &free);
            assert_eq!((got, used), best, "{name} {free:?} {}", flags(&placement));
            seen[placement.verdict as usize] += 1;
        }
        assert!(seen.iter().all(|&n| n >= 5), "{name}: {seen:?}");
    }
}

#[test]
fn no_split_keeps_fewer_experts_on_the_host() {
    let name = "granite-4.0-h-tiny.Q4_K_M";
    let (model, run) = (model(name), run(4096));
    let n = model.hparams.n_layer_all + 1;
    let mut random = Random(1_234_567);
    for _ in 0..4 {
        let free = random.gpus(3 << 30);
        let gpus = free.map(|f| device(f, "8.6"));
        let placement = plan(model, &run, &gpus, &Policy::default(), &PROFILE).unwrap();
        verify(model, &gpus, &placement);
        let at = placement.flags.iter().position(|f| f == "-ncmoe");
        let Some(at) = at else { continue };
        let on_host: usize = placement.flags[at + 1].parse().unwrap();
        let experts = |il: usize| to_host(&format!(r"blk\.{il}\.ffn_(up|down|gate)_exps"));
        let fewer: Vec<TensorOverride> = (0..on_host - 1).map(experts).collect();
        let fits = |needed: &[u64], gpus: &[u64]| needed.iter().zip(gpus).all(|(n, f)| n <= f);
        for (total, needed) in all_full_splits(model, &run, &fewer) {
            let k = needed.len();
            let found = total == n && (0..=2 - k).any(|i| fits(&needed, &free[i..i + k]));
            assert!(!found, "{free:?}: {} is enough", on_host - 1);
        }
    }
}

/// Those with all layers on GPUs.
fn all_full_splits(model: &Model, run: &RunConfig, overrides: &[TensorOverride]) -> Vec<Split> {
    let n = model.hparams.n_layer_all + 1;
    let one = |counts: &[usize]| {
        let layout = Layout {
            devices: vec![LayoutDevice::new(ComputeCapability::new(8, 6)); counts.len()],
            n_gpu_layers: None,
            tensor_split: counts.iter().map(|&c| c as f32).collect(),
            overrides: overrides.to_vec(),
            ..Layout::default()
        };
        let b = Breakdown::estimate(model, run, &layout, &PROFILE).unwrap();
        let bytes = b.devices.iter().zip(&b.runtime);
        (
            n,
            bytes.map(|(m, r)| m.sum() + r.sum() + OVERHEAD).collect(),
        )
    };
    let two = (0..=n).map(|a| one(&[a, n - a]));
    two.chain([one(&[n])]).collect()
}

#[test]
fn eight_unequal_gpus_take_few_estimates() {
    let gpus = [5_576, 4_384, 2_288, 8_192, 1_144, 5_240, 4_096, 3_000].map(|mib| (mib, "8.6"));
    for model in [
        "llama-3.1-70b.Q4_K_M",
        "deepseek-v3.Q4_K_M",
        "gemma-3-12b.Q4_K_M",
    ] {
        let placement = Case::new(model, &gpus, 8192).plan();
        assert!(
            placement.n_estimates <= 100,
            "{model}: {}",
            placement.n_estimates
        );
    }
}
