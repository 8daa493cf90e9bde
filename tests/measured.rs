//! What real cards showed, against what is predicted: `fixtures/measured`.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    clippy::disallowed_types
)] // tests read files and may panic

use std::path::PathBuf;

use vramfit::estimate::{Breakdown, EngineProfile, Layout, LayoutDevice};
use vramfit::{Allowance, FlashAttention, Outputs, RunConfig, gpus, open};

const MIB: u64 = 1 << 20;
/// Measured and predicted may differ by this much a die.
const TOLERANCE: u64 = 8 * MIB;

fn fixture(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("../../fixtures")
        .join(path)
}

/// The breakdown of a model on so many K80 dies, all layers on them in equal shares.
fn on_k80(model: &str, n_ctx: u32, n_dies: usize, profile: &EngineProfile) -> Breakdown {
    let model = open(fixture(model)).unwrap();
    let die = &gpus("k80").unwrap()[0];
    let mut device = LayoutDevice::new(die.compute_capability);
    device.sm_count = die.sm_count;
    let layout = Layout {
        devices: vec![device; n_dies],
        ..Layout::default()
    };
    let mut run = RunConfig::default();
    run.n_ctx = n_ctx;
    run.flash_attention = FlashAttention::Off;
    run.outputs = Outputs::EveryToken;
    Breakdown::estimate(&model, &run, &layout, profile).unwrap()
}

/// Each row, within the interval of what CUDA takes on a K80 and within 8 MiB of its upper end, the one
/// that plans reckon with. Nothing is fitted: the buffers are llama.cpp's arithmetic, the pool ggml's.
#[test]
fn k80_dies_read_what_is_predicted() {
    let text = std::fs::read_to_string(fixture("measured/k80.tsv")).unwrap();
    let cuda: &Allowance = &gpus("k80").unwrap()[0].overhead;
    assert_eq!((cuda.bytes, cuda.kept_bytes), (169 * MIB, 0));
    let mut dies = 0;
    for line in text.lines().filter(|l| !l.starts_with('#')) {
        let columns: Vec<&str> = line.split('\t').collect();
        let [model, flags, measured @ ..] = columns.as_slice() else {
            panic!("{line}");
        };
        let n_ctx = flags.strip_prefix("-c ").unwrap();
        let n_ctx = n_ctx.strip_suffix(" -fa off").unwrap().parse().unwrap();
        let measured: Vec<u64> = measured
            .iter()
            .filter(|mib| **mib != "-")
            .map(|mib| mib.parse::<u64>().unwrap() * MIB)
            .collect();
        let b = on_k80(
            model,
            n_ctx,
            measured.len(),
            &EngineProfile::MEASURED_ON_K80,
        );
        for (i, measured) in measured.into_iter().enumerate() {
            assert!(!b.runtime[i].is_bound, "{line}");
            let own = b.devices[i].sum() + b.runtime[i].sum();
            let (low, high) = (own + cuda.low_bytes, own + cuda.bytes);
            println!(
                "{model} {n_ctx} die {i}: {} to {} MiB, measured {}",
                low / MIB,
                high / MIB,
                measured / MIB
            );
            // nvidia-smi shows whole MiB
            assert!(low < measured + MIB && measured <= high, "{line}");
            assert!(high - measured <= TOLERANCE, "{line}");
            dies += 1;
        }
    }
    assert_eq!(dies, 12);
}

/// What `fixtures/measured/run` writes: by line a card, its driver, the engine's build, a model, llama-server's flags, a device;
/// buffers as the engine says them, pool and workspace as predicted, and the total that was measured, bytes; how.
fn check_row(line: &str) -> Result<(), String> {
    let columns: Vec<&str> = line.split('\t').collect();
    let &[card, _, build, _, _, _, buffers, pool, measured, _] = columns.as_slice() else {
        return Err(format!("ten columns: {line}"));
    };
    if build != vramfit::ENGINE.name {
        return Err(format!("another build: {line}"));
    }
    let card = card.replace(',', " ");
    let known = vramfit::devices::find_card(&card).map_err(|e| e.to_string())?;
    let device = &gpus(known.card.key).map_err(|e| e.to_string())?[0];
    let bytes = |text: &str| text.parse::<u64>().map_err(|e| format!("{e}: {line}"));
    let (own, measured) = (bytes(buffers)? + bytes(pool)?, bytes(measured)?);
    let cuda = &device.overhead;
    let low = own + cuda.low_bytes;
    let high = own + cuda.bytes.saturating_sub(cuda.kept_bytes);
    let outside = low
        .saturating_sub(measured)
        .max(measured.saturating_sub(high));
    match outside <= (64 * MIB).max(measured / 100) {
        true => Ok(()),
        false => Err(format!(
            "{} MiB outside of the interval: {line}",
            outside / MIB
        )),
    }
}

/// Those of other cards, once somebody has measured them; until then that the check can fail, with a K80's.
#[test]
fn measured_rows_lie_in_the_shipped_interval() {
    let row = |buffers_mib: u64, measured_mib: u64| {
        let build = vramfit::ENGINE.name;
        let [buffers, pool, measured] = [buffers_mib, 2084, measured_mib].map(|n| n * MIB);
        format!(
            "Tesla K80\t470\t{build}\tm\t-c 2048\tCUDA0\t{buffers}\t{pool}\t{measured}\tprocess"
        )
    };
    check_row(&row(4583, 6831)).unwrap();
    check_row(&row(4583, 6831 + 80)).unwrap_err();
    check_row(&row(4583 + 80, 6831)).unwrap_err();
    check_row("K80\t6831").unwrap_err();
    for entry in std::fs::read_dir(fixture("measured")).unwrap() {
        let path = entry.unwrap().path();
        if path.to_string_lossy().ends_with(".rows.tsv") {
            let text = std::fs::read_to_string(&path).unwrap();
            let rows: Vec<&str> = text.lines().filter(|l| !l.starts_with('#')).collect();
            assert!(!rows.is_empty(), "{}", path.display());
            rows.iter().for_each(|row| check_row(row).unwrap());
        }
    }
}

/// What sets the build of those rows apart from v0.5.0: pins lost while compute buffers are sized. The figures are
/// those of v0.5.0's own `no_alloc` pass, which loses them, and of its real load, which does not, for the second die:
/// `oracle run qwen2.5-14b.Q4_K_M.gguf -ngl 99 -ts 1,1 -fa off -c N --both` on two K80 dies, in units of 1/32 MiB.
#[test]
fn lost_pins_are_the_engines_own_difference() {
    let rows = [
        (2048, [13_409, 12_129]),
        (4096, [15_617, 14_337]),
        (8192, [26_881, 25_601]),
        (16_384, [49_409, 48_129]),
    ];
    for (n_ctx, expected) in rows {
        let profiles = [
            EngineProfile::MEASURED_ON_K80,
            EngineProfile::LLAMA_CPP_V0_5_0,
        ];
        let compute = profiles.map(|profile| {
            let b = on_k80("measured/qwen2.5-14b.Q4_K_M.gguf", n_ctx, 2, &profile);
            b.devices[1].compute
        });
        assert_eq!(compute, expected.map(|n| n * MIB / 32), "{n_ctx}");
        assert_eq!(compute[0] - compute[1], 4 * 512 * 5120 * 4);
    }
}
