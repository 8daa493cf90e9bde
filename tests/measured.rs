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

/// A row of `fixtures/measured/run`: a card, its driver, the engine's build, a model, llama-server's flags, a device; buffers as the
/// engine says them, pool and workspace as predicted then, the total that was measured, bytes; and how.
struct Row<'a> {
    card: &'a str,
    model: &'a str,
    flags: &'a str,
    device: &'a str,
    buffers: u64,
    measured: u64,
}

impl<'a> Row<'a> {
    fn read(line: &'a str) -> Result<Row<'a>, String> {
        let columns: Vec<&str> = line.split('\t').collect();
        let &[
            card,
            _,
            build,
            model,
            flags,
            device,
            buffers,
            _,
            measured,
            _,
        ] = columns.as_slice()
        else {
            return Err(format!("ten columns: {line}"));
        };
        if build != vramfit::ENGINE.name {
            return Err(format!("another build: {line}"));
        }
        let bytes = |text: &str| text.parse::<u64>().map_err(|e| format!("{e}: {line}"));
        Ok(Row {
            card,
            model,
            flags,
            device,
            buffers: bytes(buffers)?,
            measured: bytes(measured)?,
        })
    }

    fn flag(&self, name: &str) -> Option<&'a str> {
        let mut words = self.flags.split(' ');
        words.find(|word| *word == name)?;
        words.next()
    }

    fn number(&self, name: &str, default: u32) -> Result<u32, String> {
        let text = self.flag(name);
        text.map_or(Ok(default), |text| {
            text.parse().map_err(|e| format!("{name} {text}: {e}"))
        })
    }

    /// What is predicted today.
    fn breakdown(&self, device: &vramfit::Device) -> Result<Breakdown, String> {
        let known = [
            "-c", "-b", "-ub", "-np", "-fa", "-ngl", "-dev", "-sm", "-ts", "--fit", "-no-kvu",
        ];
        let unknown = |word: &&str| word.starts_with('-') && !known.contains(word);
        if let Some(word) = self.flags.split(' ').find(unknown) {
            return Err(format!("this test does not know {word}"));
        }
        let model = open(fixture(&format!("gguf/{}", self.model))).map_err(|e| e.to_string())?;
        let mut run = RunConfig::default();
        run.n_ctx = self.number("-c", 4096)?;
        run.n_batch = self.number("-b", 2048)?;
        run.n_ubatch = self.number("-ub", 512)?;
        run.n_seq_max = self.number("-np", 1)?;
        run.flash_attention = match self.flag("-fa") {
            Some("on") => FlashAttention::On,
            Some("off") => FlashAttention::Off,
            other => return Err(format!("-fa {other:?} does not say which kernels ran")),
        };
        let mut on = LayoutDevice::new(device.compute_capability);
        on.sm_count = device.sm_count;
        let shares = self
            .flag("-ts")
            .map(|ts| ts.split(',').map(|x| x.parse().unwrap()).collect());
        let layout = Layout {
            devices: vec![on; self.flag("-dev").map_or(0, |d| d.split(',').count())],
            n_gpu_layers: Some(self.number("-ngl", u32::MAX)?),
            tensor_split: shares.unwrap_or_default(),
            ..Layout::default()
        };
        Breakdown::estimate(&model, &run, &layout, &vramfit::ENGINE).map_err(|e| e.to_string())
    }

    /// Buffers are those of today's prediction, and the total lies in its interval.
    fn check(&self) -> Result<(), String> {
        let card = self.card.replace(',', " ");
        let known = vramfit::devices::find_card(&card);
        let known = known.map_err(|e| format!("{e}: the catalogue (crates/devices) lacks it"))?;
        let device = &gpus(known.card.key).map_err(|e| e.to_string())?[0];
        let b = self.breakdown(device)?;
        let mut used = self.flag("-dev").unwrap_or("").split(',');
        let at = used
            .position(|name| name == self.device)
            .ok_or("not of -dev")?;
        let predicted = b.devices[at].sum();
        // a server's log has hundredths of a MiB
        if predicted.abs_diff(self.buffers) > 64 << 10 {
            return Err(format!(
                "buffers of {predicted} are predicted, not {}",
                self.buffers
            ));
        }
        let own = predicted + b.runtime[at].sum();
        let cuda = &device.overhead;
        let low = own + cuda.low_bytes;
        let high = own + cuda.bytes.saturating_sub(cuda.kept_bytes);
        let below = low.saturating_sub(self.measured);
        let outside = below.max(self.measured.saturating_sub(high));
        match outside <= (64 * MIB).max(self.measured / 100) {
            true => Ok(()),
            false => Err(format!("{} MiB outside of the interval", outside / MIB)),
        }
    }
}

fn check_row(line: &str) -> Result<(), String> {
    let row = Row::read(line)?;
    row.check().map_err(|why| format!("{why}: {line}"))
}

/// Those of real cards, once somebody has measured them. Until then that the check can fail, with what the real engine took
/// on an imaginary card whose context is 260 MiB (`fixtures/measured/run --imaginary`).
#[test]
fn measured_rows_lie_in_the_shipped_interval() {
    let row = |model: &str, ngl: u32, buffers: u64, measured: u64| {
        let build = vramfit::ENGINE.name;
        let flags = format!("-c 4096 -b 2048 -ub 512 -np 1 -fa on -ngl {ngl} -dev CUDA0 --fit off");
        let card = "NVIDIA GeForce RTX 3090\t580.65.06";
        format!(
            "{card}\t{build}\t{model}.Q4_K_M.gguf\t{flags}\tCUDA0\t{buffers}\t0\t{measured}\tprocess"
        )
    };
    let (llama, qwen) = ("llama-3.1-8b", "qwen3-8b");
    let (buffers, measured) = (5_271_718_272, 5_559_028_096);
    check_row(&row(llama, 33, buffers, measured)).unwrap();
    check_row(&row(qwen, 37, 5_380_614_272, 5_665_826_944)).unwrap();
    check_row(&row(llama, 33, buffers, measured + 160 * MIB)).unwrap_err();
    check_row(&row(llama, 33, buffers, measured - 110 * MIB)).unwrap_err();
    check_row(&row(llama, 33, buffers + MIB, measured)).unwrap_err();
    check_row(&row(qwen, 33, buffers, measured)).unwrap_err();
    check_row(&row(llama, 32, buffers, measured)).unwrap_err();
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
