//! How long the prompts are: as long as a slot of llama-server holds.

use crate::{Stage, answer};

/// Slots of a unified cache fill it together, others have a part each (`llama_n_ctx_seq`), and none is longer than the
/// context that the model was trained for (`n_ctx_slot` in tools/server/server-context.cpp), here 32768. Behind the
/// prompt there is room for what is generated.
#[test]
fn prompts_fill_the_slots() {
    let stage = Stage::new();
    let check = |flags: &[&str], slots: usize, tokens: usize| {
        let engine = stage.engine_with("llama-server", flags, |part| {
            part.prompt = tokens;
            part.prompts = slots;
        });
        let limited = ["--engine", &engine, "--no-learn", "--time-limit", "60"];
        let mut run = stage.calibrate(&limited);
        let run = answer(run.args(flags));
        assert_eq!(run.code, Some(0), "{flags:?}: {}", run.out);
        assert!(run.out.contains("buffers as predicted"), "{}", run.out);
    };
    check(&["-np", "1"], 1, 2044);
    check(&["-np", "2"], 2, 1020);
    check(&["-np", "2", "-kvu"], 2, 1020);
    check(&["-np", "3", "-c", "3072"], 3, 1020);
    check(&["-c", "40960"], 1, 32764);
}
