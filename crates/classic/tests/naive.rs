//! The estimator and the scheduler once more, written down a second time from their description: letters as it has
//! them, whole numbers of 128 bits, one function a GPU list. Random settings on every model of the fixtures.
#![allow(clippy::unwrap_used)]
#![allow(clippy::disallowed_methods)] // a test, not the crate: it lists the fixtures

use std::cmp::{Reverse, max, min};
use std::path::{Path, PathBuf};

use vramfit_classic::*;
use vramfit_gguf::{Header, Value};

type N = u128;
const MIB: N = 1 << 20;

/// What is asked.
#[derive(Clone, Copy, Debug)]
struct Case {
    ctx: N,
    batch: N,
    parallel: Option<u64>,
    bytes_halved: u32,
    fused: bool,
    overhead: N,
    num_gpu: Option<N>,
    fixed: bool,
    fork: bool,
    spread: bool,
}

/// A header by its letters.
struct Naive {
    arch: String,
    e: N,
    v: N,
    h: N,
    k: N,
    k_min: N,
    dk: N,
    dv: N,
    dh: N,
    ff: N,
    window: N,
    ssm: [N; 4],
    heads: Vec<(N, N)>,
    blocks: Vec<N>,
    output: N,
    tower: N,
    gate_exps: Option<N>,
    gate_rows: Option<N>,
    qkv_bias: Option<N>,
    pools: bool,
}

fn number(value: Value) -> N {
    N::from(value.as_u64().unwrap_or(0))
}

impl Naive {
    fn new(header: &Header) -> Naive {
        let arch = header.architecture().unwrap().to_string();
        let get = |name: &str| header.get(&format!("{arch}.{name}"));
        let key = |name: &str, default: N| match get(name) {
            Some(value) if value.as_u64().is_some() => number(value),
            _ => default,
        };
        let list = |name: &str| match get(name) {
            Some(value) => match value.as_array() {
                Some(array) => array.iter().map(number).collect::<Vec<N>>(),
                None => vec![number(value)],
            },
            None => vec![1],
        };
        let n_layer = key("block_count", 0) as usize;
        let (h, k) = (
            list("attention.head_count"),
            list("attention.head_count_kv"),
        );
        let at = |list: &[N], il: usize| match list {
            [one] => *one,
            list => list.get(il).copied().unwrap_or(1),
        };
        let e = key("embedding_length", 0);
        let dh = e.checked_div(*h.iter().min().unwrap()).unwrap_or(0);
        let tensors = || header.tensors().iter();
        let sum = |wanted: &dyn Fn(&str) -> bool| -> N {
            let wanted = tensors().filter(|t| wanted(&t.name));
            wanted.map(|t| N::from(t.n_bytes)).sum()
        };
        let named = |name: &str| tensors().find(|t| t.name == name);
        let first = |part: &str| sum(&|name| name.split('.').next() == Some(part));
        let matrix = if tensors().any(|t| t.name.starts_with("output.")) {
            first("output")
        } else {
            first("token_embd")
        };
        let tokens = header
            .get("tokenizer.ggml.tokens")
            .and_then(|v| v.as_array());
        let rows = named("token_embd.weight").map_or(0, |t| t.ne[1] as N);
        Naive {
            v: tokens.map_or(key("vocab_size", rows), |tokens| tokens.len() as N),
            h: *h.iter().max().unwrap(),
            k: *k.iter().max().unwrap(),
            k_min: *k.iter().min().unwrap(),
            dk: key("attention.key_length", dh),
            dv: key("attention.value_length", dh),
            ff: key("feed_forward_length", 0),
            window: key("attention.sliding_window", 0),
            ssm: ["conv_kernel", "inner_size", "state_size", "group_count"]
                .map(|name| key(&format!("ssm.{name}"), 0)),
            heads: (0..n_layer).map(|il| (at(&h, il), at(&k, il))).collect(),
            blocks: (0..n_layer)
                .map(|il| sum(&|name| name.starts_with(&format!("blk.{il}."))))
                .collect(),
            output: first("output_norm") + matrix,
            tower: match key("vision.block_count", 0) {
                0 => 0,
                _ => {
                    sum(&|name| name.starts_with("v."))
                        + vision(&arch, &key, named("v.class_embd").is_some())
                }
            },
            gate_exps: named("blk.0.ffn_gate_exps.weight").map(|t| N::from(t.n_bytes)),
            gate_rows: named("blk.0.ffn_gate.0.weight").map(|t| t.ne[1] as N),
            qkv_bias: named("blk.0.attn_qkv.bias").map(|t| t.ne[0] as N),
            pools: get("pooling_type").is_some(),
            arch,
            e,
            dh,
        }
    }

    /// KV cache per layer, and as if no architecture were special.
    fn kv(&self, c: N, b: N, p: N, halved: u32) -> (Vec<N>, Vec<N>) {
        let row = (self.dk + self.dv) * self.k;
        let [conv, inner, state, groups] = self.ssm;
        let recurrent = 4 * (conv.saturating_sub(1) * (inner + 2 * groups * state) + state * inner);
        let of_elements = |n: N| (2 * n) >> halved;
        let plain: Vec<N> = (self.heads.iter())
            .map(|&(h, k)| match h * k {
                0 => recurrent,
                _ => of_elements(c * (self.dk + self.dv) * k),
            })
            .collect();
        let special = plain
            .iter()
            .enumerate()
            .map(|(il, &plain)| match self.arch.as_str() {
                "gemma3" if il % 6 != 5 => of_elements((p * self.window + b) * row),
                "gpt-oss" if il % 2 == 0 => of_elements(row) * (4096 * p + b),
                "gpt-oss" => of_elements(row) * c,
                _ => plain,
            });
        (special.collect(), plain)
    }

    /// F and T.
    fn graphs(&self, c: N, b: N, p: N, fused: bool, kv: &[N], plain: &[N]) -> [N; 2] {
        let &Naive {
            e, v, h, k, dk, dh, ..
        } = self;
        let x = 4 * b * (e + v) + e * v * 105 / 128;
        let [f, t] = match self.arch.as_str() {
            "llama" | "llama4" => {
                let f = 4 * b * max(1 + 4 * e + c * (1 + h), e + v);
                let t = 4 * b * (1 + e + max(c, e)) + e * e * 9 / 16 + 4 * c * (b * h + dh * k);
                let t = 4 * b * e + max(t, x);
                match (self.gate_exps, self.gate_rows) {
                    (Some(size), _) => [
                        f,
                        max(
                            3 * size + 4 * b * (2 * self.ff + k + e + c + dh * k),
                            4 * (c * b * h + c * dh * k + 1024 * b + dh * k * b),
                        ),
                    ],
                    (None, Some(g)) => [
                        4 * b * (2 + 3 * e + c * (1 + h) + 2 * k + g),
                        max(
                            4 * b * (3 + dh * k + e + c * (1 + h) + g)
                                + (e * e + 3 * e * k * g) * 9 / 16,
                            4 * b * (1 + 2 * e + c * (1 + h)) + e * (6 * c * k / h + e * 9 / 16),
                        ),
                    ],
                    (None, None) => [f, t],
                }
            }
            "gemma" | "gemma2" | "gemma3" | "gemma3n" => {
                let times = if self.arch == "gemma3n" { 4 } else { 1 };
                let t = 4 * b * (2 * e + 1 + 2 * dk * h + c + c * h)
                    + 32 * dk * c
                    + 9 * e * dk * h / 16;
                [
                    times * 4 * b * max(e + v, 2 + c + c * h + 2 * e + 2 * dk * h),
                    times * max(x, t),
                ]
            }
            "command-r" => [
                4 * b * max(e + v, 2 + 4 * e + c * (1 + h)),
                max(
                    x,
                    4 * b * (1 + 2 * e + c * (1 + h)) + 4 * e * c + 9 * e * e / 16,
                ),
            ],
            "qwen2" => [
                4 * b * max(e + v, 1 + 2 * e + c + c * h),
                max(x, 4 * (b * (1 + 2 * e + c * (1 + h)) + e * (1 + c))),
            ],
            "phi2" => [
                4 * b * max(e + v, 1 + 4 * e + c + c * h),
                max(
                    4 * b * (2 * e + v) + 105 * e * v / 128,
                    4 * b * (2 + 3 * e + c + c * h),
                ),
            ],
            "stablelm" => {
                let f = 4 * b * (c * (1 + h) + 3 * e + 2);
                [f, max(4 * b * (v + 2 * e), f)]
            }
            "deepseek2" => [
                4 * b * max(3 * e + v, 3 * e + 2 + c * (1 + k) + 2 * dk * k),
                max(
                    4 * b * (3 * e + v) + 105 * e * v / 128,
                    4 * b * (2 * e + 1 + 2 * dk * k + c + c * k)
                        + 4 * dk * c * k
                        + 9 * e * dk * k / 16,
                ),
            ],
            "chatglm" => match self.qkv_bias {
                None => [4 * b * (e + v), x],
                Some(q) => [
                    4 * b * max(e + v, 2 + 2 * e + c + c * h + dk * h + q),
                    max(
                        x,
                        4 * b * (1 + 2 * e + dk * h + c + c * h) + 8 * dk * c + 4 * q,
                    ),
                ],
            },
            "gpt-oss" if fused => [0, (4 * p + (c >> 10) + 110) * MIB],
            "gpt-oss" => [0, 2 * h / max(self.k_min, 1) * plain.iter().sum::<N>() / 6],
            _ => [0, 0],
        };
        let t = match t {
            0 => h / max(self.k_min, 1) * kv.iter().sum::<N>() / 6,
            t => t,
        };
        [if f == 0 { t } else { f }, t]
    }

    /// Layers of each GPU and what it is charged, all layers, and whether everything is loaded.
    fn fit(&self, case: &Case, p: N, free: &[N]) -> (Vec<usize>, Vec<N>, N, bool) {
        let ctx = max(case.ctx, 4);
        let (c, b) = (ctx * p, min(case.batch, ctx));
        let fused = case.fused && !case.fork && !self.pools && self.dk > 0 && self.dk == self.dv;
        let halved = if fused { case.bytes_halved } else { 0 };
        let (kv, plain) = self.kv(c, b, p, halved);
        let [f, t] = self.graphs(c, b, p, fused, &kv, &plain);
        let f = if free.len() > 1 { t } else { f };
        if !case.fixed {
            return self.hand_out(case, free, &kv, max(f, t), [f, t], true);
        }
        let full = self.hand_out(case, free, &kv, f, [f, t], true);
        match full.3 {
            true => full,
            false => self.hand_out(case, free, &kv, t, [f, t], false),
        }
    }

    fn hand_out(
        &self,
        case: &Case,
        free: &[N],
        kv: &[N],
        tested: N,
        [f, t]: [N; 2],
        may_be_full: bool,
    ) -> (Vec<usize>, Vec<N>, N, bool) {
        let n = free.len();
        let graph = |gpu: usize, graph: N| match case.fork && gpu + 1 < n {
            true => 190 * MIB,
            false => graph,
        };
        let (mut used, mut layers, mut usable) = (vec![0; n], vec![0; n], Vec::new());
        let buffer = self.blocks[0] + kv[0];
        for gpu in 0..n {
            let projector = if usable.is_empty() && !case.fork {
                self.tower
            } else {
                0
            };
            let least = case.overhead + projector + graph(gpu, tested) + 457 * MIB + 2 * buffer;
            if free[gpu] >= least {
                usable.push(gpu);
                used[gpu] = 457 * MIB + buffer + projector;
            }
        }
        let has_room = |used: &[N], gpu: usize, bytes: N| {
            free[gpu] > case.overhead + used[gpu] + graph(gpu, tested) + bytes
        };
        let wanted = case.num_gpu.unwrap_or(N::MAX);
        let (n_layer, mut placed) = (self.blocks.len(), 0);
        for step in 0..n_layer {
            let il = if case.fork { n_layer - 1 - step } else { step };
            let bytes = self.blocks[il] + kv[il];
            while placed < wanted && !usable.is_empty() {
                let at = if case.fork {
                    usable.len() - 1
                } else {
                    il % usable.len()
                };
                let gpu = usable[at];
                if has_room(&used, gpu, bytes) {
                    used[gpu] += bytes;
                    layers[gpu] += 1;
                    placed += 1;
                    break;
                }
                usable.remove(at);
            }
        }
        let all = placed >= n_layer as N;
        let last = self.output + if case.fork { self.tower } else { 0 };
        if placed < wanted && (may_be_full || !all) {
            for j in (1..=usable.len()).rev() {
                let gpu = usable[if case.fork {
                    j - 1
                } else {
                    placed as usize % j
                }];
                if has_room(&used, gpu, last) {
                    used[gpu] += last;
                    layers[gpu] += 1;
                    placed += 1;
                    break;
                }
            }
        }
        let full = placed > n_layer as N;
        for gpu in 0..n {
            if layers[gpu] > 0 {
                used[gpu] += graph(gpu, if full { f } else { t });
            }
        }
        (layers, used, placed, full)
    }

    /// GPUs, requests at once, and their layers and bytes.
    fn schedule(&self, case: &Case, free: &[N]) -> (Vec<usize>, N, Vec<usize>, Vec<N>) {
        let mut order: Vec<usize> = (0..free.len()).collect();
        order.sort_by_key(|&gpu| Reverse(free[gpu]));
        let asked = if self.pools { Some(1) } else { case.parallel };
        let requests: Vec<N> = match asked {
            Some(n) => vec![N::from(n)],
            None if case.fork => vec![1],
            None => vec![4, 1],
        };
        let mut sets: Vec<(Vec<usize>, N)> = Vec::new();
        if case.fork && !case.spread {
            sets.extend((1..=order.len()).map(|n| (order[..n].to_vec(), requests[0])));
        } else {
            for &p in requests.iter().filter(|_| !case.spread) {
                sets.extend(order.iter().map(|&gpu| (vec![gpu], p)));
            }
            sets.extend(requests.iter().map(|&p| (order.clone(), p)));
        }
        let wanted = case.num_gpu.unwrap_or(self.blocks.len() as N + 1);
        sets.push(((0..free.len()).collect(), requests[requests.len() - 1]));
        let last = sets.len() - 1;
        for (at, (gpus, p)) in sets.into_iter().enumerate() {
            let of_set: Vec<N> = gpus.iter().map(|&gpu| free[gpu]).collect();
            let (layers, used, placed, _) = self.fit(case, p, &of_set);
            if at == last || (placed > 0 && placed >= wanted) {
                return (gpus, p, layers, used);
            }
        }
        unreachable!("the last set is always taken")
    }
}

/// The vision tower's graph.
fn vision(arch: &str, key: &dyn Fn(&str, N) -> N, has_class: bool) -> N {
    let of = |name: &str| key(&format!("vision.{name}"), 0);
    let (size, patch) = (of("image_size"), of("patch_size"));
    if !["gemma3", "mistral3"].contains(&arch) || patch == 0 {
        return 0;
    }
    let n = (size / patch) * (size / patch) + N::from(has_class);
    4 * (size * size * of("num_channels")
        + of("embedding_length") * patch
        + n * n * of("attention.head_count"))
}

fn models() -> Vec<(PathBuf, Header)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/gguf");
    let files = ["", "ollama", "made"].map(|name| std::fs::read_dir(folder.join(name)).unwrap());
    let files = files
        .into_iter()
        .flatten()
        .map(|entry| entry.unwrap().path());
    let mut files: Vec<PathBuf> = files
        .filter(|path| path.extension().is_some_and(|e| e == "gguf"))
        .collect();
    files.sort();
    let open = |path: PathBuf| Header::open(&path).ok().map(|header| (path, header));
    files.into_iter().filter_map(open).collect()
}

fn check(path: &Path, model: &Naive, facts: &Facts, case: &Case, free: &[u64]) {
    let settings = Settings {
        context: case.ctx as u64,
        batch: case.batch as u64,
        num_gpu: case.num_gpu.map(|n| n as u64),
        cache_type: [CacheType::F16, CacheType::Q8_0, CacheType::Q4_0][case.bytes_halved as usize],
        flash_attention: case.fused && !case.fork,
        overhead_bytes: case.overhead as u64,
        ..Settings::default()
    };
    let version = if case.fork {
        Version::K80Fork
    } else {
        Version::Upstream
    };
    let rules = Rules {
        version,
        fixed: case.fixed,
    };
    let gpus: Vec<Gpu> = free.iter().map(|&free| Gpu::cuda(free)).collect();
    let decision = schedule(facts, &gpus, &settings, case.parallel, case.spread, &rules);
    let free: Vec<N> = free.iter().map(|&free| N::from(free)).collect();
    let (gpus, parallel, layers, used) = model.schedule(case, &free);
    let estimate = &decision.taken.estimate;
    let found: Vec<usize> = estimate.shares.iter().map(|s| s.layers.len()).collect();
    let sums: Vec<N> = estimate.shares.iter().map(|s| N::from(s.sum())).collect();
    let told = format!("{} {case:?} {free:?}", path.display());
    assert_eq!(decision.taken.gpus, gpus, "{told}");
    assert_eq!(N::from(estimate.load.parallel), parallel, "{told}");
    assert_eq!((found, sums), (layers, used), "{told}");
}

#[test]
fn ten_thousand_cases_are_as_written_down_twice() {
    let mut rng = fastrand::Rng::with_seed(6);
    let models: Vec<_> = (models().iter())
        .filter_map(|(path, header)| {
            let facts = Facts::read(header, &[]).ok()?;
            Some((path.clone(), Naive::new(header), facts))
        })
        .collect();
    assert!(models.len() > 200, "{} models", models.len());
    for round in 0..10_000 {
        let (path, model, facts) = &models[round % models.len()];
        let pick = |rng: &mut fastrand::Rng, list: &[N]| list[rng.usize(..list.len())];
        let case = Case {
            ctx: pick(&mut rng, &[1, 300, 512, 2048, 4096, 32_768, 131_072]),
            batch: pick(&mut rng, &[512, 512, 128, 2048]),
            parallel: [None, Some(1), Some(2), Some(3)][rng.usize(..4)],
            bytes_halved: rng.u32(..3),
            fused: rng.bool(),
            overhead: pick(&mut rng, &[0, 0, 1 << 30]),
            num_gpu: [None, None, None, Some(3), Some(20), Some(999)][rng.usize(..6)],
            fixed: rng.bool(),
            fork: rng.bool(),
            spread: rng.u8(..5) == 0,
        };
        // About as much as it takes on as many GPUs as there is room for, so that the choice is close.
        let n_gpus = rng.usize(1..=4);
        let all = model.schedule(&case, &vec![1 << 60; n_gpus]).3;
        let all: N = all.iter().sum();
        let mut near = |of: f64| (all as f64 * of * (0.8 + 0.4 * rng.f64())) as u64;
        let free: Vec<u64> = match round % 3 {
            0 => (0..n_gpus).map(|_| near(1.0)).collect(),
            1 => (0..n_gpus).map(|_| near(1.0 / n_gpus as f64)).collect(),
            _ => (0..n_gpus).map(|gpu| near(gpu as f64 / 3.0)).collect(),
        };
        check(path, model, facts, &case, &free);
    }
}
