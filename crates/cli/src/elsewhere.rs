//! llama-server's flags that change what takes memory, or say where the model is, and that nothing here goes by: as of
//! `common/arg.cpp` of v0.5.0. On the command line and in the environment alike they are errors, so that no figure is
//! called exact that leaves one out.

use std::ffi::OsString;

/// What to do instead.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Instead {
    /// It is left out.
    Without,
    /// The model is a file.
    AFile,
}
use Instead::{AFile, Without};

/// Names, environment variable, and what to do instead.
const ELSEWHERE: &[(&[&str], &str, Instead)] = &[
    (&["-ncffn", "--n-cpu-ffn"], "LLAMA_ARG_N_CPU_FFN", Without),
    (
        &["--kv-unified-per-slot"],
        "LLAMA_ARG_KV_UNIFIED_PER_SLOT",
        Without,
    ),
    (
        &["-bs", "--backend-sampling"],
        "LLAMA_ARG_BACKEND_SAMPLING",
        Without,
    ),
    (&["-lzm", "--lazy-mode"], "LLAMA_ARG_LAZY_MODE", Without),
    (&["--rpc"], "LLAMA_ARG_RPC", Without),
    (&["--override-kv"], "", Without),
    (&["--attention"], "", Without),
    (
        &["--mtmd-batch-max-tokens"],
        "LLAMA_ARG_MTMD_BATCH_MAX_TOKENS",
        Without,
    ),
    (&["--models-dir"], "LLAMA_ARG_MODELS_DIR", AFile),
    (&["--models-preset"], "LLAMA_ARG_MODELS_PRESET", AFile),
    (&["-mu", "--model-url"], "LLAMA_ARG_MODEL_URL", AFile),
    (&["-dr", "--docker-repo"], "LLAMA_ARG_DOCKER_REPO", AFile),
    (&["-hf", "-hfr", "--hf-repo"], "LLAMA_ARG_HF_REPO", AFile),
    (&["-hff", "--hf-file"], "LLAMA_ARG_HF_FILE", AFile),
    (&["-mmu", "--mmproj-url"], "LLAMA_ARG_MMPROJ_URL", AFile),
    (
        &["-hfd", "-hfrd", "--spec-draft-hf", "--hf-repo-draft"],
        "LLAMA_ARG_SPEC_DRAFT_HF_REPO",
        AFile,
    ),
];

/// The error that an argument is, by its name; none if it is not one of these.
pub fn error_of_flag(name: &str) -> Option<String> {
    let (_, _, instead) = ELSEWHERE.iter().find(|(names, ..)| names.contains(&name))?;
    Some(match instead {
        Without => format!("{name} is llama-server's and not modelled here: leave it out"),
        AFile => format!("{name} is llama-server's: download the file and give its path"),
    })
}

/// The error that the environment is, where llama-server would go by more than is read here.
pub fn error_of_environment(env: &dyn Fn(&str) -> Option<OsString>) -> Option<String> {
    let is_set = |variable: &str| !variable.is_empty() && env(variable).is_some();
    let (_, variable, instead) = ELSEWHERE.iter().find(|(_, variable, _)| is_set(variable))?;
    match instead {
        Without => Some(format!(
            "{variable}: llama-server would go by it, and it is not modelled here: unset it"
        )),
        // Whoever gives a file goes by that.
        AFile => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flags::FLAGS;

    #[test]
    fn none_of_these_is_read_after_all() {
        let read = |name: &str| {
            let mut names = FLAGS
                .iter()
                .flat_map(|f| [&[f.long], f.aliases, f.negative].concat());
            names.any(|known| known == name)
        };
        for (names, variable, _) in ELSEWHERE {
            assert!(!names.iter().any(|name| read(name)), "{names:?}");
            assert!(
                !FLAGS
                    .iter()
                    .any(|f| !f.env.is_empty() && f.env == *variable),
                "{variable}"
            );
        }
    }

    #[test]
    fn what_is_not_read_is_said() {
        let with =
            |set: &'static str| move |name: &str| (name == set).then(|| OsString::from("20"));
        let error = error_of_environment(&with("LLAMA_ARG_N_CPU_FFN")).unwrap();
        assert!(error.contains("not modelled here: unset it"), "{error}");
        assert_eq!(error_of_environment(&with("LLAMA_ARG_CTX_SIZE")), None);
        assert_eq!(error_of_environment(&with("LLAMA_ARG_PORT")), None);
        assert!(error_of_flag("-hf").unwrap().contains("download the file"));
        assert_eq!(error_of_flag("-ngl"), None);
    }
}
