//! The cases of the truth table: a core that every model gets, then seeded random combinations.

use std::collections::{BTreeSet, VecDeque};

use crate::case::{Case, Gpu};
use crate::models::Model;
use crate::random::Random;
use crate::settings::Settings;

const SEED: u64 = 20_250_817;

/// Files larger than this are never read (`--no-mmap`, repacked weights): that takes real time and memory.
const READABLE_BYTES: u64 = 1_300_000_000;

fn gpus(n: usize, mib: u64, compute_capability: &str) -> Vec<Gpu> {
    vec![
        Gpu {
            total_bytes: mib << 20,
            compute_capability: compute_capability.to_owned()
        };
        n
    ]
}

/// All cases of one model: the core, then `n_random` random ones, none twice.
pub fn cases(model: &Model, n_random: usize) -> Vec<Case> {
    let mut cases = Cases::new(model.clone(), 0);
    let n = cases.core.len() + n_random;
    (0..n).map(|_| cases.next_case().1).collect()
}

/// The cases of one model without end, none twice. Seed 0 is the truth table's.
pub struct Cases {
    model: Model,
    random: Random,
    seen: BTreeSet<String>,
    core: VecDeque<(Settings, Case)>,
}

impl Cases {
    /// The core comes first, whatever the seed.
    pub fn new(model: Model, seed: u64) -> Self {
        let mut seen = BTreeSet::new();
        let with_case = |settings: Settings| (settings.clone(), settings.case(&model));
        let core = core(&model).into_iter().map(with_case);
        let core = core.filter(|(_, case)| seen.insert(case.key())).collect();
        Self {
            random: Random::new(SEED.wrapping_add(seed), &model.entry.file),
            seen,
            core,
            model,
        }
    }

    /// Random cases alone.
    pub fn without_core(mut self) -> Self {
        self.core.clear();
        self
    }

    /// What the engine said about the model.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// The next one.
    pub fn next_case(&mut self) -> (Settings, Case) {
        if let Some(next) = self.core.pop_front() {
            return next;
        }
        loop {
            let settings = combination(&mut self.random, &self.model);
            let case = settings.clone().case(&self.model);
            if self.seen.insert(case.key()) {
                return (settings, case);
            }
        }
    }
}

/// The fixed cases, the most telling first.
fn core(model: &Model) -> Vec<Settings> {
    let one = || Settings::plain(gpus(1, 81_920, "8.6"));
    let two = || Settings::plain(gpus(2, 24_576, "8.6"));
    let k80 = || Settings::plain(gpus(4, 11_441, "3.7"));
    let layers = i64::from(model.entry.n_layer);
    let mut list = vec![
        one(),
        Settings {
            flash_attn: "off",
            ..one()
        },
        two(),
        Settings {
            flash_attn: "off",
            ..two()
        },
        Settings {
            n_ctx: 8192,
            n_parallel: 4,
            kv_unified: true,
            n_outputs: 4,
            flash_attn: "auto",
            ..one()
        },
        k80(),
        Settings {
            n_gpu_layers: layers / 2,
            ..two()
        },
        Settings {
            n_gpu_layers: 0,
            ..one()
        },
        Settings {
            n_outputs: 0,
            ..one()
        },
        Settings {
            cache_types: ("q8_0", "q8_0"),
            ..two()
        },
        Settings {
            n_ctx: 8192,
            n_parallel: 4,
            n_outputs: 4,
            ..two()
        },
        one().with("-nkvo"),
        Settings {
            n_ctx: 32_768,
            n_batch: 2048,
            n_ubatch: 2048,
            ..two()
        },
        Settings {
            flash_attn: "auto",
            n_outputs: 0,
            ..k80()
        },
        Settings {
            flash_attn: "off",
            ..k80()
        },
        Settings {
            n_gpu_layers: layers / 2,
            flash_attn: "off",
            ..one()
        },
        Settings {
            n_gpu_layers: layers,
            ..one()
        },
        Settings {
            n_gpu_layers: layers,
            ..two()
        },
        Settings {
            n_gpu_layers: 1,
            n_outputs: 0,
            ..one()
        },
        Settings {
            n_gpu_layers: -1,
            cache_types: ("q4_0", "q4_0"),
            flash_attn: "auto",
            ..one()
        },
        Settings {
            flash_attn: "off",
            cache_types: ("f16", "q8_0"),
            ..one()
        },
        Settings {
            n_gpu_layers: layers / 3,
            ..one()
        }
        .with("--no-op-offload"),
        two().with("-sm none -mg 1"),
        two().with("-ts 3,1"),
        two().with("-dev CUDA1"),
        Settings {
            n_ctx: 131_072,
            ..two()
        },
        Settings {
            n_ctx: 512,
            n_ubatch: 1,
            ..one()
        },
        Settings {
            n_ctx: 16_384,
            ..one()
        }
        .with("--swa-full 1"),
        Settings {
            n_outputs: 0,
            ..one()
        }
        .with("--embeddings"),
        Settings {
            n_outputs: 0,
            ..one()
        }
        .with("--embeddings --pooling 1"),
        Settings {
            n_gpu_layers: layers / 2,
            n_ctx: 2048,
            ..one()
        }
        .with("-ot blk\\.[0-9]\\.ffn_.*=CPU"),
        two().with("-ot blk\\.1[0-9]\\..*=CUDA1"),
        Settings::plain(Vec::new()).with("--no-repack"),
        Settings {
            flash_attn: "off",
            n_outputs: 0,
            ..Settings::plain(Vec::new())
        }
        .with("--no-repack"),
    ];
    if model.n_expert > 0 {
        list.push(one().with("--cpu-moe"));
        list.push(two().with("--n-cpu-moe 5"));
        list.push(
            Settings {
                flash_attn: "off",
                ..two()
            }
            .with("-ot ffn_up_exps=CPU,ffn_gate_exps=CUDA1"),
        );
    }
    if model.entry.file_bytes < READABLE_BYTES {
        list.push(Settings::plain(Vec::new()));
        list.push(two().with("--no-mmap"));
        list.push(
            Settings {
                n_gpu_layers: layers / 2,
                ..one()
            }
            .with("--no-mmap"),
        );
    }
    list
}

fn random_gpus(random: &mut Random) -> Vec<Gpu> {
    const MIB: [u64; 11] = [
        81_920, 81_079, 49_140, 40_960, 32_768, 24_576, 24_564, 16_384, 12_288, 11_441, 8_192,
    ];
    const CAPABILITIES: [&str; 9] = [
        "3.7", "6.1", "7.0", "7.5", "8.0", "8.6", "8.9", "9.0", "12.0",
    ];
    let n = random.weighted(&[(1, 32), (2, 32), (3, 7), (4, 18), (8, 5), (0, 6)]);
    let (equal, mixed) = (random.chance(60), random.chance(18));
    let (mut mib, mut capability) = (random.pick(&MIB), random.pick(&CAPABILITIES));
    let mut list = Vec::new();
    for _ in 0..n {
        if !equal {
            mib = random.pick(&MIB);
        }
        if mixed {
            capability = random.pick(&CAPABILITIES);
        }
        list.extend(gpus(1, mib, capability));
    }
    list
}

fn random_cache_types(random: &mut Random) -> (&'static str, &'static str) {
    const ALL: [&str; 9] = [
        "f16", "q8_0", "q4_0", "bf16", "f32", "q5_1", "q4_1", "q5_0", "iq4_nl",
    ];
    match random.below(100) {
        0..55 => ("f16", "f16"),
        55..70 => ("q8_0", "q8_0"),
        70..78 => ("q4_0", "q4_0"),
        78..89 => {
            let one = random.pick(&ALL);
            (one, one)
        }
        _ => (random.pick(&ALL), random.pick(&ALL)),
    }
}

fn combination(random: &mut Random, model: &Model) -> Settings {
    let layers = u64::from(model.entry.n_layer);
    let gpus = random_gpus(random);
    let n_parallel = random.weighted(&[(1, 60), (4, 25), (2, 9), (3, 6)]);
    let n_batch = random.weighted(&[
        (2048, 75),
        (512, 7),
        (256, 4),
        (4096, 6),
        (1024, 4),
        (100, 2),
        (1, 2),
    ]);
    let mut settings = Settings {
        n_gpu_layers: match random.below(100) {
            0..50 => 99,
            50..58 => -1,
            58..64 => 0,
            64..70 => layers as i64,
            _ => random.below(layers + 1) as i64,
        },
        n_ctx: random.weighted(&[
            (4096, 22),
            (512, 8),
            (777, 4),
            (1024, 6),
            (2048, 10),
            (5000, 5),
            (8192, 14),
            (16_384, 9),
            (32_768, 9),
            (65_536, 4),
            (131_072, 5),
            (0, 4),
        ]),
        n_batch,
        n_ubatch: random.weighted(&[
            (512, 52),
            (1, 4),
            (64, 8),
            (128, 8),
            (1024, 9),
            (2048, 11),
            (100, 3),
            (4096, 2),
            (256, 3),
        ]),
        flash_attn: random.weighted(&[("on", 40), ("off", 30), ("auto", 30)]),
        n_parallel,
        kv_unified: n_parallel > 1 && random.chance(50),
        n_outputs: random.weighted(&[(n_parallel, 50), (0, 38), (1, 4), (32, 4), (512, 4)]),
        cache_types: random_cache_types(random),
        more: Vec::new(),
        gpus,
    };
    devices(random, &mut settings);
    placement(random, model, &mut settings);
    if random.chance(8) {
        settings = settings.with("--swa-full 1");
    }
    if random.chance(6) {
        settings = settings.with("-nkvo");
    }
    if random.chance(7) {
        settings = settings.with("--no-op-offload");
    }
    if random.chance(if model.entry.is_embedding_model() {
        75
    } else {
        5
    }) {
        settings = settings.with("--embeddings");
        if random.chance(60) {
            settings = settings.with(&format!("--pooling {}", random.below(4)));
        }
    }
    without_aborts(random, &mut settings);
    file_access(random, model, settings)
}

/// llama.cpp aborts on some settings (failed assertions), which says nothing about memory: keep only a few of those.
fn without_aborts(random: &mut Random, settings: &mut Settings) {
    if random.chance(1) {
        return;
    }
    settings.n_parallel = settings.n_parallel.min(settings.n_batch); // a sequence wants an output, a batch has n_batch
    settings.kv_unified &= settings.n_parallel > 1;
    if settings.n_outputs != 0 {
        settings.n_outputs = settings.n_outputs.clamp(
            settings.n_parallel,
            settings.n_batch.max(settings.n_parallel),
        );
    }
    if settings.more.iter().any(|word| word == "--pooling") {
        settings.n_outputs = 0; // pooling reads every token of a batch
    }
}

fn devices(random: &mut Random, settings: &mut Settings) {
    let n = settings.gpus.len() as u64;
    if n < 2 {
        return;
    }
    match random.below(100) {
        0..22 => {
            let shares: Vec<String> = (0..n)
                .map(|_| {
                    random
                        .weighted(&[(0, 15), (1, 30), (2, 15), (3, 20), (7, 10), (24, 10)])
                        .to_string()
                })
                .collect();
            settings.more.extend(["-ts".to_owned(), shares.join(",")]);
        }
        22..32 => settings
            .more
            .extend(["-sm", "none", "-mg", &random.below(n).to_string()].map(str::to_owned)),
        32..42 => {
            let mut names: Vec<String> = (0..n)
                .filter(|_| random.chance(60))
                .map(|i| format!("CUDA{i}"))
                .collect();
            if names.is_empty() {
                names.push(format!("CUDA{}", n - 1));
            }
            if random.chance(25) {
                names.reverse();
            }
            settings.more.extend(["-dev".to_owned(), names.join(",")]);
        }
        42..44 => settings
            .more
            .extend(["-dev", "none", "--no-repack"].map(str::to_owned)),
        _ => {}
    }
}

fn placement(random: &mut Random, model: &Model, settings: &mut Settings) {
    let gpus = settings.gpus.len();
    if model.n_expert > 0 && random.chance(25) {
        let layers = random.below(u64::from(model.entry.n_layer) + 2);
        let flags = if random.chance(35) {
            "--cpu-moe".to_owned()
        } else {
            format!("--n-cpu-moe {layers}")
        };
        settings.more.extend(flags.split(' ').map(str::to_owned));
    } else if gpus > 0 && random.chance(9) {
        const TO_CPU: [&str; 6] = [
            "blk\\.[0-9]\\.ffn_.*=CPU",
            "ffn_(up|down)=CPU",
            "output\\.weight=CPU",
            "token_embd=CPU",
            "attn_.*=CPU",
            "blk\\.(2|3|5)\\..*=CPU,ffn_down=CPU",
        ];
        const TO_FIRST: [&str; 4] = [
            "attn_.*=CUDA0",
            "token_embd=CUDA0",
            "blk\\.(2|3|5)\\..*=CPU,ffn_down=CUDA0",
            "norm=CUDA0,ffn_up=CPU",
        ];
        const TO_SECOND: [&str; 3] = [
            "blk\\.1[0-9]\\..*=CUDA1",
            "ffn_.*=CUDA1,attn_.*=CUDA0",
            "blk\\.[0-4]\\..*=CUDA1,blk\\.7\\.ffn_.*=CPU",
        ];
        let all_used = !settings
            .more
            .iter()
            .any(|word| word == "-dev" || word == "-sm");
        let pattern = if all_used && gpus > 1 && random.chance(50) {
            random.pick(&TO_SECOND)
        } else if all_used && random.chance(50) {
            random.pick(&TO_FIRST)
        } else {
            random.pick(&TO_CPU)
        };
        settings.more.extend(["-ot", pattern].map(str::to_owned));
    }
}

fn file_access(random: &mut Random, model: &Model, settings: Settings) -> Settings {
    let readable = model.entry.file_bytes < READABLE_BYTES;
    let repacked = settings.more.iter().any(|word| word == "--no-repack");
    if settings.gpus.is_empty() {
        // Without GPUs llama.cpp copies weights into another layout (CPU_REPACK), which reads them.
        return if readable && random.chance(50) {
            settings
        } else {
            settings.with("--no-repack")
        };
    }
    if readable && random.chance(8) {
        return settings.with("--no-mmap");
    }
    if !repacked && random.chance(1) {
        settings.with("--no-host --no-repack")
    } else {
        settings
    }
}
