//! What Ollama said itself: its own tests, and lines of its log in public reports.
#![allow(clippy::unwrap_used)]

use vramfit_classic::graph::{Graphs, graphs};
use vramfit_classic::human::{human, list};
use vramfit_classic::layout::{Assigned, later};
use vramfit_classic::*;
use vramfit_ggml::Type;
use vramfit_gguf::{Header, Writer};

const MIB: u64 = 1 << 20;

fn settings(context: u64, parallel: u64) -> Settings {
    Settings {
        context,
        parallel,
        ..Settings::default()
    }
}

fn upstream(model: &Facts, gpus: &[Gpu], settings: &Settings) -> Estimate {
    estimate(model, gpus, settings, &Rules::default())
}

/// `TestEstimateGPULayers` of llm/memory_test.go.
fn dummy() -> Facts {
    let mut writer = Writer::new();
    let key = |writer: &mut Writer, name: &str, n: u32| {
        writer.key(&format!("llama.{name}"), n).unwrap();
    };
    writer.key("general.architecture", "llama").unwrap();
    key(&mut writer, "context_length", 32);
    key(&mut writer, "embedding_length", 4096);
    key(&mut writer, "block_count", 5);
    key(&mut writer, "attention.head_count", 32);
    key(&mut writer, "attention.head_count_kv", 32);
    writer.key("tokenizer.ggml.tokens", vec![" "]).unwrap();
    for il in 0..5 {
        writer.tensor(&format!("blk.{il}.attn.weight"), Type::F32, &[1, 1, 1, 1]);
    }
    writer.tensor("output.weight", Type::F32, &[1, 1, 1, 1]);
    let header = Header::parse(writer.finish().unwrap()).unwrap();
    Facts::read(&header, &[]).unwrap()
}

#[test]
fn two_gpus_of_unequal_size_share_a_dummy() {
    let model = dummy();
    let settings = settings(2048, 1);
    let expected = Graphs {
        full: 171_968_512,
        partial: 202_377_216,
    };
    assert_eq!(graphs(&model, &settings.load(&model)), expected);
    let layer = 33_554_436;
    assert_eq!(cache::cache(&model, &settings.load(&model))[0] + 4, layer);

    // Newer copies of the test hold back 457 MiB instead; the answers are the same.
    for minimum in [2048, 457 * MIB] {
        let check = |room: [u64; 2], layers: [usize; 2]| {
            let gpu = |i: usize| {
                let has_output = (i == 0) == (room[0] > 0);
                let output = if has_output { 4 } else { 0 };
                Gpu {
                    library: Library::Cuda,
                    free_bytes: minimum + layer + room[i] * layer + 1 + expected.partial + output,
                    minimum_bytes: minimum,
                }
            };
            let e = upstream(&model, &[gpu(0), gpu(1)], &settings);
            let found = [0, 1].map(|i| e.shares[i].layers.len());
            assert_eq!(found, layers, "{room:?}");
            assert_eq!(e.split(), format!("{},{}", layers[0], layers[1]));
            assert_eq!(e.layers_offload, (layers[0] + layers[1]) as u64);
            let sum: u64 = e.shares.iter().map(Share::sum).sum();
            assert_eq!(e.required_partial, sum);
            assert_eq!(e.required_full == sum, e.layers_offload == 6, "{room:?}");
        };
        check([1, 1], [1, 1]);
        check([2, 1], [2, 1]);
        check([2, 2], [2, 2]);
        check([1, 2], [1, 2]);
        check([3, 3], [3, 3]);
        check([4, 4], [3, 3]);
        check([6, 6], [3, 3]);
        check([0, 3], [0, 3]);
    }
    assert_eq!(upstream(&model, &[], &settings).layers_offload, 0);
}

/// A header-only model with its tower, as `cargo run -p vramfit-classic --example towers` makes it.
fn gemma(size: &str) -> Facts {
    let path = format!("../../fixtures/gguf/ollama/gemma3-{size}.gguf");
    Facts::read(&Header::open(path).unwrap(), &[]).unwrap()
}

/// ollama/ollama#10341: Ollama 0.6.5 on one GPU with 11.5 GiB free.
#[test]
fn gemma3_12b_at_2048_fits_a_gpu_of_12_gib() {
    let e = upstream(
        &gemma("12b"),
        &[Gpu::cuda(11_776 * MIB)],
        &settings(2048, 1),
    );
    assert_eq!(human(e.kv), "608.0 MiB");
    assert_eq!(human(e.required_full), "10.3 GiB");
    assert_eq!((e.layers_offload, e.layers_model), (49, 49));
    assert!(e.fits() && e.split().is_empty());
}

#[test]
fn gemma3_27b_for_two_requests() {
    let gpu = Gpu::cuda(24 << 30);
    let e = upstream(&gemma("27b"), &[gpu], &settings(4096, 2));
    assert_eq!(human(e.formula.full), "565.0 MiB");
    assert_eq!(human(e.formula.partial), "1.6 GiB");
    assert_eq!(human(e.kv), "1.6 GiB");
    assert_eq!(human(e.projector.weights_bytes), "795.9 MiB");
    assert_eq!(human(e.projector.graph_bytes), "1.0 GiB");
    assert_eq!(human(e.required_full), "20.1 GiB");
}

/// ollama/ollama#9818: one GPU with 11.0 GiB free, an older count of the cache (2048 tokens in every
/// layer of the window's size).
#[test]
fn gemma3_27b_on_one_gpu_of_12_gib() {
    let e = upstream(&gemma("27b"), &[Gpu::cuda(11 << 30)], &settings(2048, 1));
    assert_eq!(human(e.formula.full), "522.5 MiB");
    assert_eq!(human(e.formula.partial), "1.6 GiB");
    assert_eq!(human(e.repeating), "14.3 GiB");
    assert_eq!(human(e.nonrepeating), "1.1 GiB");
    assert!(!e.fits());
}

/// Blocks of 70 B parameters: 80, 8192 wide, with 64 query and 8 key/value heads.
fn seventy_billion(architecture: &str, vocab: u64, blocks: Vec<u64>, output_bytes: u64) -> Facts {
    Facts {
        architecture: architecture.to_string(),
        embedding: 8192,
        heads: vec![[64, 8]; 80],
        head_count: [64, 64],
        head_count_kv: [8, 8],
        key_length: 128,
        value_length: 128,
        vocab,
        blocks,
        output_bytes,
        ..Facts::default()
    }
}

/// Bytes of `n` elements of a type.
fn bytes(ty: Type, n: u64) -> u64 {
    n / ty.block_size() * ty.type_size()
}

/// ollama/ollama#5913, 2024-07-24, one GPU of 24.0 GiB: dolphin-qwen2:72b-q4_k_s, told in a thread about
/// llama3:70b, which is how the reference names it. Its 313.0 MiB are the logits of Qwen2's 152,064 tokens.
/// Types: Q4_K_S as llama.cpp mixes it for 80 layers; rows of 29,568 are no multiple of 256, so
/// `ffn_down` is in Q5_1 in the first eighth, in Q5_0 behind it.
#[test]
fn qwen2_72b_leaves_38_layers_on_the_host() {
    const E: u64 = 8192;
    const FF: u64 = 29_568;
    let block = |il: usize| {
        let down = if il < 10 { Type::Q5_1 } else { Type::Q5_0 };
        let k_and_biases = bytes(Type::Q4_K, E * 1024) + bytes(Type::F32, E + 2 * 1024);
        let norms = 2 * bytes(Type::F32, E);
        let attention = 2 * bytes(Type::Q4_K, E * E) + bytes(Type::Q5_K, E * 1024);
        let feed_forward = 2 * bytes(Type::Q4_K, E * FF) + bytes(down, E * FF);
        attention + k_and_biases + norms + feed_forward
    };
    let output = bytes(Type::Q6_K, E * 152_064) + bytes(Type::F32, E);
    let blocks = (0..80).map(block).collect();
    let model = seventy_billion("qwen2", 152_064, blocks, output);
    let gpu = Gpu {
        library: Library::Rocm,
        free_bytes: 24 << 30,
        minimum_bytes: Library::Rocm.minimum_bytes(),
    };
    let e = upstream(&model, &[gpu], &settings(2048, 1));
    assert_eq!((e.layers_offload, e.layers_model), (43, 81));
    assert_eq!(human(e.kv), "640.0 MiB");
    assert_eq!(human(e.formula.full), "313.0 MiB");
    assert_eq!(human(e.formula.partial), "1.3 GiB");
    assert_eq!(human(e.nonrepeating), "974.6 MiB");
    assert_eq!(human(e.required_partial), "23.7 GiB");
    assert_eq!(human(e.required_full), "43.1 GiB");
    // The log of that time counts the cache among the weights: 39.9 GiB in all.
    assert_eq!(human(e.repeating + e.kv), "39.9 GiB");
}

/// ollama/ollama#9181, 2025-02-18: a Llama of 70 B parameters in Q8_0 on four GPUs of 22.0 GiB, 64,000 tokens.
#[test]
fn llama_70b_fills_four_gpus_evenly() {
    const E: u64 = 8192;
    let matrices = 2 * E * E + 2 * E * 1024 + 3 * E * 28_672;
    let block = bytes(Type::Q8_0, matrices) + 2 * bytes(Type::F32, E);
    let output = bytes(Type::Q8_0, E * 128_256) + bytes(Type::F32, E);
    let model = seventy_billion("llama", 128_256, vec![block; 80], output);
    let gpus = [Gpu::cuda(22 << 30); 4];
    let e = upstream(&model, &gpus, &settings(64_000, 1));
    assert_eq!((e.layers_offload, e.layers_model), (44, 81));
    assert_eq!(e.split(), "11,11,11,11");
    assert_eq!(human(e.kv), "19.5 GiB");
    assert_eq!(human(e.graph.full), "8.2 GiB");
    assert_eq!(human(e.graph.partial), "8.2 GiB");
    assert_eq!(human(e.nonrepeating), "1.0 GiB");
    let sizes = list(e.shares.iter().map(Share::sum));
    assert_eq!(sizes, "[21.8 GiB 21.8 GiB 21.8 GiB 21.8 GiB]");
    assert_eq!(human(e.required_partial), "87.1 GiB");
    assert_eq!(human(e.required_full), "127.4 GiB");
}

/// The log of ollama37, 2025-10-29: two dies with 11.1 GiB free each. An idle die of 11,441 MiB has 93
/// taken once Ollama has made the context from which it asks.
fn dies() -> [Gpu; 2] {
    [Gpu::cuda((11_441 - 93) * MIB); 2]
}

fn decide(model: &Facts, version: Version, fixed: bool, parallel: Option<u64>) -> Decision {
    let rules = Rules { version, fixed };
    schedule(
        model,
        &dies(),
        &Settings::default(),
        parallel,
        false,
        &rules,
    )
}

#[test]
fn gemma3_12b_is_split_over_two_dies_that_it_does_not_need() {
    let model = gemma("12b");
    let d = decide(&model, Version::K80Fork, false, None);
    let e = &d.taken.estimate;
    assert_eq!((d.outcome, e.split().as_str()), (Outcome::Full, "1,48"));
    assert_eq!(list(e.shares.iter().map(Share::sum)), "[3.3 GiB 8.6 GiB]");
    assert_eq!(human(e.required_full), "11.9 GiB");
    assert_eq!(human(e.kv), "736.0 MiB");
    assert_eq!(human(e.repeating), "6.0 GiB");
    assert_eq!(human(e.nonrepeating), "787.5 MiB");
    assert_eq!(human(e.repeating + e.nonrepeating), "6.8 GiB");
    assert_eq!(human(e.graph.full), "1.3 GiB");
    assert_eq!(human(e.projector.weights_bytes), "795.9 MiB");
    assert_eq!(human(e.projector.graph_bytes), "1.0 GiB");
    let mib = |bytes: u64| format!("{:.1}", bytes as f64 / MIB as f64);
    assert_eq!(mib(e.formula.full), "519.5");
    assert_eq!(mib(e.formula.partial), "1307.0");
    assert_eq!(mib(e.repeating), "6168.6");
    assert_eq!(mib(e.projector.graph_bytes), "1033.2");

    // One die was tried first: 11.166 GiB with the graph of a partial offload.
    let one = &d.rejected[0].estimate;
    let with_partial = one.required_full;
    assert_eq!(one.layers_offload, 48);
    assert_eq!(human(one.required_partial), "8.6 GiB");
    assert_eq!(
        format!("{:.3}", with_partial as f64 / (1u64 << 30) as f64),
        "11.166"
    );
}

#[test]
fn gemma3_12b_fits_one_die_by_the_graph_it_has_then() {
    let model = gemma("12b");
    for version in [Version::Upstream, Version::K80Fork] {
        let d = decide(&model, version, true, None);
        let e = &d.taken.estimate;
        assert_eq!((d.outcome, d.taken.gpus.len()), (Outcome::Full, 1));
        assert_eq!((e.layers_offload, e.load.parallel), (49, 1));
        let gib = e.required_partial as f64 / (1u64 << 30) as f64;
        assert_eq!(format!("{gib:.2}"), "10.40");
    }
}

/// Before the fork changed its rules its log said 25,24 and [7.7 GiB 5.3 GiB], as upstream would.
#[test]
fn upstream_would_halve_gemma3_12b() {
    let d = decide(&gemma("12b"), Version::Upstream, false, Some(1));
    let e = &d.taken.estimate;
    assert_eq!(e.split(), "25,24");
    assert_eq!(list(e.shares.iter().map(Share::sum)), "[7.7 GiB 5.3 GiB]");
    assert_eq!(human(e.required_full), "13.0 GiB");
}

/// The fork's notes of 2025-10-30: 10.9 GiB were estimated on the second die, and more was needed.
#[test]
fn gemma3_27b_is_split_by_all_and_4b_by_none() {
    let d = decide(&gemma("27b"), Version::K80Fork, false, None);
    assert_eq!(human(d.taken.estimate.shares[1].sum()), "10.9 GiB");

    for (version, fixed) in [
        (Version::Upstream, false),
        (Version::Upstream, true),
        (Version::K80Fork, false),
        (Version::K80Fork, true),
    ] {
        let d = decide(&gemma("27b"), version, fixed, Some(1));
        let used = d
            .taken
            .estimate
            .shares
            .iter()
            .filter(|s| !s.layers.is_empty());
        assert_eq!(used.count(), 2, "{version:?} {fixed}");
        let d = decide(&gemma("4b"), version, fixed, Some(1));
        assert_eq!((d.outcome, d.taken.gpus.len()), (Outcome::Full, 1));
    }
}

#[test]
fn the_output_layer_always_counts() {
    let model = gemma("12b");
    let rules = Rules {
        version: Version::Upstream,
        fixed: true,
    };
    // Enough for the blocks under either graph, one byte short of the output layer.
    let all = estimate(&model, &[Gpu::cuda(1 << 40)], &Settings::default(), &rules);
    let check = |free: u64, layers: u64| {
        let e = estimate(&model, &[Gpu::cuda(free)], &Settings::default(), &rules);
        assert_eq!((e.layers_offload, e.fits()), (layers, layers == 49));
    };
    check(all.required_partial + 1, 49);
    check(all.required_partial, 48);
}

/// Where the graph of a full offload is the larger one, what has room beside the other is no full offload.
#[test]
fn a_full_offload_has_room_for_its_own_graph() {
    let path = "../../fixtures/gguf/mixtral-8x7b.Q4_K_M.gguf";
    let model = Facts::read(&Header::open(path).unwrap(), &[]).unwrap();
    let settings = Settings {
        batch: 4096,
        ..Settings::default()
    };
    let rules = Rules {
        version: Version::Upstream,
        fixed: true,
    };
    let with = |free: u64| estimate(&model, &[Gpu::cuda(free)], &settings, &rules);
    let all = with(1 << 40);
    assert!(all.formula.full > all.formula.partial);
    assert!(with(all.required_partial + 1).fits());
    let less = with(all.required_partial);
    assert_eq!((less.layers_offload, less.fits()), (32, false));
    assert_eq!(less.shares[0].graph, less.formula.partial);
}

#[test]
fn settings_bound_what_is_handed_out() {
    let model = gemma("12b");
    let with = |change: fn(&mut Settings)| {
        let mut settings = Settings::default();
        change(&mut settings);
        upstream(&model, &[Gpu::cuda(24 << 30)], &settings)
    };
    let all = with(|_| {});
    let ten = with(|s| s.num_gpu = Some(10));
    assert_eq!(
        (ten.layers_offload, ten.fits(), ten.fully_loaded),
        (10, true, false)
    );
    assert_eq!(ten.shares[0].graph, ten.formula.partial);
    let none = with(|s| s.num_gpu = Some(0));
    assert!(!none.fits());
    let held = with(|s| s.overhead_bytes = 22 << 30);
    assert_eq!(held.layers_offload, 0);
    let small = with(|s| s.cache_type = CacheType::Q8_0);
    assert_eq!(small.kv, all.kv, "no flash attention, no other type");
    let small = with(|s| (s.cache_type, s.flash_attention) = (CacheType::Q8_0, true));
    assert_eq!(small.kv * 2, all.kv);
    let gpu = Gpu::cuda(10 << 30).left(12 << 30, 5 << 30);
    assert_eq!(gpu.free_bytes, 7 << 30);
}

fn scheduled(model: &Facts, free: &[u64], settings: &Settings, parallel: Option<u64>) -> Decision {
    let gpus: Vec<Gpu> = free.iter().map(|&free| Gpu::cuda(free)).collect();
    schedule(model, &gpus, settings, parallel, false, &Rules::default())
}

/// `pickBestFullFitByLibrary` and `pickBestPartialFitByLibrary` of server/sched.go.
#[test]
fn what_does_not_fit_goes_to_all_gpus_in_the_drivers_order() {
    let model = gemma("27b");
    let d = scheduled(&model, &[8 << 30, 10 << 30], &settings(4096, 1), Some(1));
    assert_eq!((d.outcome, d.taken.gpus), (Outcome::Partial, vec![0, 1]));
    // Tried before that: the one with more, the other, both.
    let tried: Vec<_> = d.rejected.iter().map(|a| a.gpus.as_slice()).collect();
    assert_eq!(tried, [&[1][..], &[0], &[1, 0]]);
    // One GPU alone is all of them: four requests and one, each once.
    let d = scheduled(&model, &[8 << 30], &settings(4096, 1), None);
    let tried: Vec<_> = (d.rejected.iter())
        .map(|a| a.estimate.load.parallel)
        .collect();
    assert_eq!(tried, [4, 1]);
}

/// `PredictServerFit` asks for as many layers as `num_gpu` says, be they more than there are.
#[test]
fn more_layers_than_there_are_spread_over_all_gpus() {
    let with = |num_gpu| {
        let settings = Settings {
            num_gpu: Some(num_gpu),
            ..Settings::default()
        };
        scheduled(&gemma("4b"), &[24 << 30, 24 << 30], &settings, None)
    };
    let d = with(999);
    assert_eq!((d.outcome, d.taken.gpus.len()), (Outcome::Full, 2));
    assert_eq!(d.taken.estimate.layers_offload, 35);
    assert_eq!(d.taken.estimate.load.parallel, 1);
    let d = with(35);
    assert_eq!((d.outcome, d.taken.gpus.len()), (Outcome::Full, 1));
    assert_eq!(d.taken.estimate.load.parallel, 4);
    // None at all: the CPU, where room for four requests is taken for granted.
    let d = with(0);
    assert_eq!((d.outcome, d.taken.gpus.len()), (Outcome::Host, 0));
    assert_eq!((d.taken.estimate.load.parallel, d.rejected.len()), (4, 0));
}

/// `processPending` and `GetRunner` of server/sched.go.
#[test]
fn models_that_answer_one_request_at_a_time() {
    let mut model = gemma("4b");
    let parallel = |model: &Facts| {
        let d = scheduled(model, &[24 << 30], &Settings::default(), Some(2));
        d.taken.estimate.load.parallel
    };
    assert_eq!(parallel(&model), 2);
    model.is_pooled = true;
    assert_eq!(parallel(&model), 1);
    model.is_pooled = false;
    assert_eq!(settings(2, 1).load(&model).context, 4);
    model.projector_files_bytes = 1;
    assert_eq!(settings(512, 1).load(&model).context, 2048);
}

/// `TestLLMServerFitGPU` of llm/server_test.go.
#[test]
fn later_versions_fill_from_the_last_layer() {
    let check = |free: &[u64], layers: &[u64], expected: &[(usize, &[usize])]| {
        let minimum = Library::Cuda.minimum_bytes();
        let gpus: Vec<Gpu> = free
            .iter()
            .map(|mib| Gpu::cuda(mib * MIB + minimum))
            .collect();
        let layers: Vec<u64> = layers.iter().map(|mib| mib * MIB).collect();
        let expected: Vec<Assigned> = (expected.iter())
            .map(|&(gpu, layers)| Assigned {
                gpu,
                layers: layers.to_vec(),
            })
            .collect();
        assert_eq!(later(&layers, &gpus, None), expected);
    };
    check(&[256], &[50, 50, 50], &[(0, &[0, 1, 2])]);
    check(&[256], &[100, 100, 100, 100], &[(0, &[1, 2])]);
    check(&[128, 256], &[50, 50, 50], &[(1, &[0, 1, 2])]);
    check(&[128, 256], &[256, 50, 50], &[(1, &[0]), (0, &[1, 2])]);
    check(&[128, 256], &[256, 256, 50], &[(1, &[1])]);
}
