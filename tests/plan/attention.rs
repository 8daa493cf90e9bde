//! Flash attention beside GPUs whose builds have none. llama.cpp's `auto` goes by the GPUs that hold layers: with an RTX 3090
//! and a K80 given and every layer on the former (`-dev CUDA0`, `-ts 1,0`, `-sm none -mg 0`), it comes to on.

use super::*;
use vramfit_plan::WithoutFlashAttention;

const RTX_3090: (u64, &str) = (24_000, "8.6");
const BOTH: [(u64, &str); 2] = [RTX_3090, K80];
const M: &str = "qwen3-8b.Q4_K_M";

fn without(policy: &mut Policy, devices: &[usize]) {
    policy.without_flash_attention = Some(WithoutFlashAttention {
        devices: devices.to_vec(),
        projector: None,
    });
}

/// Whether it is on, where the layers are, and that the note is there just where it is off for a GPU's sake.
fn check(case: Case, on: bool, counts: &[usize]) -> Placement {
    let placement = case.plan();
    assert_eq!(layers(&placement), counts, "{}", flags(&placement));
    assert_eq!(placement.breakdown.params.flash_attn, on);
    let is_noted = |note: &String| note.contains("no published build has flash attention");
    assert_eq!(placement.notes.iter().any(is_noted), !on);
    let said = if on { "-fa auto" } else { "-fa off" };
    assert!(flags(&placement).contains(said), "{}", flags(&placement));
    placement
}

#[test]
fn a_gpu_that_is_left_alone_decides_nothing() {
    for n_ctx in [4096, 110_000, 128_000] {
        let alone = Case::new(M, &[RTX_3090], n_ctx).plan();
        assert_eq!(alone.verdict, Verdict::Fits);
        let case = Case::new(M, &BOTH, n_ctx).with(|p| without(p, &[1]));
        let both = check(case, true, &[37, 0]);
        assert_eq!(both.breakdown, alone.breakdown);
    }
    let ways: [fn(&mut Policy); 3] = [
        |p| p.pinned.devices = Some(vec![0]),
        |p| p.pinned.tensor_split = Some(vec![1.0, 0.0]),
        |p| {
            p.pinned.split_mode = Some(SplitMode::None);
            p.pinned.main_gpu = Some(0);
        },
    ];
    for change in ways {
        let case = Case::new(M, &BOTH, 110_000).with(|p| without(p, &[1]));
        check(case.with(change), true, &[37, 0]);
    }
}

#[test]
fn a_layer_on_such_a_gpu_turns_it_off() {
    let case = |n_ctx| Case::new(M, &BOTH, n_ctx).with(|p| without(p, &[1]));
    check(
        case(4096).with(|p| p.pinned.devices = Some(vec![1])),
        false,
        &[0, 37],
    );
    let shares = |p: &mut Policy| p.pinned.tensor_split = Some(vec![1.0, 1.0]);
    check(case(4096).with(shares), false, &[19, 18]);
    let engine = check(
        case(4096).with(|p| p.mode = LayoutMode::Engine),
        false,
        &[26, 11],
    );
    assert_eq!(engine.layout_devices, [0, 1]);
    // as the policy prefers, where either holds everything by itself
    check(
        case(4096).with(|p| p.prefer = Prefer::Last),
        false,
        &[0, 37],
    );
    check(
        case(4096).with(|p| p.prefer = Prefer::First),
        true,
        &[37, 0],
    );
    let only = Case::new(M, &[K80], 4096).with(|p| without(p, &[0]));
    check(only, false, &[37]);
    // who says -fa is obeyed
    let mut on = case(4096).with(shares);
    on.run.flash_attention = FlashAttention::On;
    assert!(on.plan().breakdown.params.flash_attn);
}

/// Without flash attention both together hold what one holds with it; what neither holds goes where more of it fits.
#[test]
fn the_better_of_both_ways_is_taken() {
    let mixed = [(14_000, "8.6"), K80];
    let split = Case::new(M, &mixed, 60_000).with(|p| without(p, &[1]));
    let mut off = Case::new(M, &mixed, 60_000);
    off.run.flash_attention = FlashAttention::Off;
    let on = Case::new(M, &mixed[..1], 60_000);
    let (found, off, on) = (split.plan(), off.plan(), on.plan());
    let rank = |p: &Placement| (p.verdict as u8, p.host_layers.len());
    assert_eq!(rank(&found), rank(&off).min(rank(&on)));
}

#[test]
fn a_refusal_says_that_it_is_for_want_of_flash_attention() {
    let refused = |gpus: &[(u64, &str)], lack: &[usize]| {
        let mut case = Case::new(M, gpus, 4096).with(|p| without(p, lack));
        (case.run.type_k, case.run.type_v) = (Type::Q4_0, Type::Q4_0);
        plan(model(M), &case.run, &devices(gpus), &case.policy, &PROFILE)
    };
    let error = refused(&[K80], &[0]).unwrap_err().to_string();
    assert!(
        error.starts_with("no published build has flash attention for GPU with"),
        "{error}"
    );
    assert!(refused(&BOTH, &[1]).unwrap().breakdown.params.flash_attn);
}

/// `GGML_ASSERT(n_outputs_max <= cparams.n_outputs_max)`, as llama-server with `-b 8 -np 16`; `-b 16` loads.
#[test]
fn a_batch_of_fewer_tokens_than_sequences_is_an_abort() {
    let with = |n_batch, n_seq_max| {
        let mut run = run(4096);
        (run.n_batch, run.n_seq_max) = (n_batch, n_seq_max);
        plan(
            model(M),
            &run,
            &devices(&[RTX_3090]),
            &Policy::default(),
            &PROFILE,
        )
    };
    for (n_batch, n_seq) in [(8, 16), (4, 8), (3, 4), (1, 2)] {
        let error = with(n_batch, n_seq).unwrap_err().to_string();
        assert!(
            error.contains("llama.cpp would abort") && error.contains("-b of at least -np"),
            "{error}"
        );
    }
    for (n_batch, n_seq) in [(16, 16), (4, 4), (1, 1)] {
        with(n_batch, n_seq).unwrap();
    }
}
