//! Any policy on any GPUs: the plan holds, and is the same each time.

use super::*;

fn policies() -> impl Strategy<Value = Policy> {
    let prefer = prop_oneof![
        Just(Prefer::MostFree),
        Just(Prefer::First),
        Just(Prefer::Last),
        Just(Prefer::Tightest)
    ];
    let split_mode = prop_oneof![
        6 => Just(None),
        1 => Just(Some(SplitMode::None)),
        1 => Just(Some(SplitMode::Layer))
    ];
    let shares = proptest::collection::vec(0.0f32..4.0, 0..4);
    let listed = Just(vec![0usize, 1, 2]).prop_shuffle();
    (
        (any::<bool>(), prefer, split_mode),
        proptest::option::weighted(0.2, 0u32..60),
        proptest::option::weighted(0.2, shares),
        proptest::option::weighted(0.2, (listed, 0usize..4)),
        proptest::option::weighted(0.2, 0usize..4),
        (
            proptest::bool::weighted(0.1),
            proptest::option::weighted(0.1, 0u32..40),
        ),
    )
        .prop_map(
            |((engine, prefer, split_mode), ngl, shares, listed, main, moe)| {
                let mut policy = Policy {
                    mode: if engine {
                        LayoutMode::Engine
                    } else {
                        LayoutMode::Best
                    },
                    prefer,
                    ..Policy::default()
                };
                policy.pinned.n_gpu_layers = ngl;
                policy.pinned.tensor_split = shares;
                policy.pinned.split_mode = split_mode;
                policy.pinned.main_gpu = main;
                policy.pinned.devices = listed.map(|(list, n)| list.into_iter().take(n).collect());
                (policy.pinned.cpu_moe, policy.pinned.n_cpu_moe) = moe;
                policy
            },
        )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn any_plan_holds(
        which in 0usize..4,
        frees in proptest::collection::vec(0u64..4_000, 0..4),
        old in any::<bool>(),
        n_ctx in 1u32..40_000,
        n_seq_max in 1u32..5,
        n_ubatch in 1u32..1024,
        policy in policies(),
    ) {
        let names = ["qwen2.5-0.5b.Q4_K_M", "gemma-3-4b.Q4_K_M", "granite-4.0-h-tiny.Q4_K_M", "lfm2-1.2b.F16"];
        let model = model(names[which]);
        let cc = if old { "3.7" } else { "8.9" };
        let gpus: Vec<Device> = frees.iter().map(|&mib| device(mib * MIB + 17, cc)).collect();
        let mut run = run(n_ctx);
        (run.n_seq_max, run.n_ubatch) = (n_seq_max, n_ubatch);
        // llama.cpp refuses some of these settings: then there is no plan to check
        if let Ok(placement) = plan(model, &run, &gpus, &policy, &PROFILE) {
            verify(model, &gpus, &placement);
            let again = plan(model, &run, &gpus, &policy, &PROFILE).unwrap();
            prop_assert_eq!(&placement.flags, &again.flags);
            prop_assert_eq!(&placement.rejected, &again.rejected);
        }
    }
}
