//! What the user gives is obeyed, or it is said why it cannot be.

use super::*;

#[test]
fn pinned_flags_are_obeyed() {
    let big = (24_576, "8.6");
    let m = "llama-3.1-8b.Q4_K_M";
    let two = [big, big];
    let case = |change: fn(&mut Policy)| Case::new(m, &two, 4096).with(change);
    for mode in [LayoutMode::Best, LayoutMode::Engine] {
        let check = |c: Case, verdict, counts: &[usize], text: &str| {
            check(&c.with(|p| p.mode = mode), verdict, counts, text);
        };
        let fits = Verdict::Fits;
        check(
            case(|p| p.pinned.tensor_split = Some(vec![2.0, 1.0])),
            fits,
            &[22, 11],
            "-ts 2,1",
        );
        check(
            case(|p| {
                p.pinned.split_mode = Some(SplitMode::None);
                p.pinned.main_gpu = Some(1);
            }),
            fits,
            &[0, 33],
            "-sm none -mg 1",
        );
        check(
            case(|p| p.pinned.devices = Some(vec![1])),
            fits,
            &[0, 33],
            "-dev CUDA1",
        );
        check(
            case(|p| p.pinned.devices = Some(vec![])),
            fits,
            &[0, 0],
            "-dev none",
        );
        check(
            case(|p| {
                p.pinned.devices = Some(vec![1, 0]);
                p.pinned.split_mode = Some(SplitMode::Layer);
                p.pinned.tensor_split = Some(vec![1.0, 2.0]);
            }),
            fits,
            &[22, 11],
            "-dev CUDA1,CUDA0 -sm layer -ts 1,2",
        );
        check(
            case(|p| {
                p.pinned.devices = Some(vec![0]);
                p.pinned.n_gpu_layers = Some(10);
            }),
            Verdict::Partial,
            &[10, 0],
            "-ngl 10",
        );
    }
}

#[test]
fn pinned_overrides_are_obeyed() {
    let gpus = [(24_576, "8.6")];
    let pin = |policy: &mut Policy, pattern: &str, target: OverrideTarget| {
        let pattern = Regex::new(pattern).unwrap();
        policy.pinned.overrides.push(Override { pattern, target });
    };
    for mode in [LayoutMode::Best, LayoutMode::Engine] {
        let case = |change: fn(&mut Policy)| {
            Case::new("qwen3-30b-a3b.Q4_K_M", &gpus, 4096)
                .with(change)
                .with(|p| p.mode = mode)
        };
        let partial = Verdict::Partial;
        check(&case(|p| p.pinned.cpu_moe = true), partial, &[49], "-cmoe");
        let some = case(|p| p.pinned.n_cpu_moe = Some(5));
        check(&some, partial, &[49], "-ncmoe 5");
        let down = Case::new("qwen3-30b-a3b.Q4_K_M", &gpus, 4096)
            .with(|p| pin(p, r"blk\.[0-3]\.ffn_down_exps", OverrideTarget::Host))
            .with(|p| p.mode = mode);
        check(&down, partial, &[49], r"-ot blk\.[0-3]\.ffn_down_exps=CPU");
        let nothing = Case::new("qwen3-30b-a3b.Q4_K_M", &gpus, 4096)
            .with(|p| pin(p, "no_such_tensor", OverrideTarget::Device(0)))
            .with(|p| p.mode = mode);
        check(&nothing, Verdict::Fits, &[49], "-ot no_such_tensor=CUDA0");
    }
}

#[test]
fn what_cannot_be_is_said() {
    let gpus = [K80, K80];
    let refused = |change: fn(&mut Policy), why: &str| {
        for mode in [LayoutMode::Best, LayoutMode::Engine] {
            let case = Case::new("qwen2.5-0.5b.Q4_K_M", &gpus, 4096);
            let placement = case.with(change).with(|p| p.mode = mode).plan();
            assert_eq!(placement.verdict, Verdict::DoesNotFit);
            let reason = placement.rejected[0].reason.clone().unwrap();
            assert!(reason.contains(why), "{reason}");
        }
    };
    refused(|p| p.pinned.devices = Some(vec![2]), "CUDA2");
    refused(|p| p.pinned.devices = Some(vec![0, 0]), "twice");
    refused(
        |p| {
            p.pinned.split_mode = Some(SplitMode::None);
            p.pinned.main_gpu = Some(7);
        },
        "-mg 7",
    );

    let (model, devices) = (model("qwen2.5-0.5b.Q4_K_M"), devices(&gpus));
    let mut run = run(4096);
    let mut policy = Policy::default();
    policy.pinned.overrides.push(Override {
        pattern: Regex::new("ffn").unwrap(),
        target: OverrideTarget::Device(9),
    });
    let got = plan(model, &run, &devices, &policy, &PROFILE);
    assert!(matches!(got, Err(Error::Refused(_))));
    (run.flash_attention, run.type_v) = (FlashAttention::Off, Type::Q8_0);
    let got = plan(model, &run, &devices, &Policy::default(), &PROFILE);
    assert!(matches!(got, Err(Error::Refused(_))));
}
