//! Which build of llama.cpp an engine says it is.

use std::ffi::OsString;
use std::time::{Duration, Instant};

use vramfit::ENGINE;

use super::Run;
use super::transcript::Transcript;
use crate::processes;

/// As the modelled build names itself: with `-dev` where it was not built as a release, as the truth tables' engine was not.
const MODELLED: [&str; 2] = ["0.5.0", "0.5.0-dev"];
/// And the CUDA that it was built with.
const MODELLED_CUDA: u32 = 13;
/// For `--version`, and between two looks at whether it is done.
const TIME: Duration = Duration::from_secs(20);
const PERIOD: Duration = Duration::from_millis(20);
/// Of what an engine says of itself, characters.
const MOST: usize = 80;

/// What `--version` says, as `0.5.0 (build 9000, commit 1a2b3c4)`; none where it says nothing like it.
pub(super) fn of_server(run: &Run) -> Option<String> {
    let out = Transcript::new().ok()?;
    let mut held = run.start(&[OsString::from("--version")], Some(&out)).ok()?;
    let started = Instant::now();
    while held.ended(PERIOD).is_none() {
        if started.elapsed() > TIME || run.left().is_err() {
            return None;
        }
    }
    [&run.log, &out]
        .into_iter()
        .find_map(|file| said(&file.text().unwrap_or_default()))
}

/// The CUDA that processes from `root` on have loaded the runtime of; none where it is linked into the program.
pub(super) fn cuda_of(root: u32) -> Option<u32> {
    let maps = |pid| std::fs::read_to_string(format!("/proc/{pid}/maps")).ok();
    let mut all = processes::tree(root).into_iter().filter_map(maps);
    all.find_map(|maps| cuda(&maps))
}

/// The CUDA that this process has loaded the runtime of.
pub(crate) fn loaded_cuda() -> Option<u32> {
    cuda(&std::fs::read_to_string("/proc/self/maps").ok()?)
}

fn cuda(maps: &str) -> Option<u32> {
    let (_, behind) = maps.split_once("/libcudart.so.")?;
    let digits: String = behind.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().ok()
}

/// Both of them, as they are kept.
pub(super) fn with_cuda(version: Option<String>, cuda: Option<u32>) -> Option<String> {
    match (version, cuda) {
        (Some(version), Some(cuda)) => Some(format!("{version}{CUDA}{cuda}")),
        (version, _) => version,
    }
}

/// Between the version and CUDA's.
const CUDA: &str = ", CUDA ";

fn said(text: &str) -> Option<String> {
    let line = text.lines().find_map(|l| l.strip_prefix("version: "))?;
    let line = line.trim();
    let clean = line.chars().filter(|c| !c.is_control());
    (!line.is_empty()).then(|| clean.take(MOST).collect())
}

/// The name of the build that ran, for a profile: the modelled one where the engine says that it is it.
pub(crate) fn build_name(said: Option<&str>) -> String {
    let is_modelled = |said: &str| {
        let (version, cuda) = match said.rsplit_once(CUDA) {
            Some((version, cuda)) => (version, cuda.parse().ok()),
            None => (said, Some(MODELLED_CUDA)),
        };
        let word = version.split_whitespace().next();
        word.is_some_and(|word| MODELLED.contains(&word)) && cuda == Some(MODELLED_CUDA)
    };
    match said {
        Some(said) if is_modelled(said) => ENGINE.name.to_string(),
        Some(said) => format!("llama.cpp {said}"),
        None => "a llama.cpp that does not say its version".to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_as_llama_server_prints_them() {
        let check = |text: &str, found: Option<&str>| assert_eq!(said(text).as_deref(), found);
        check(
            "ggml_cuda_init: found 1 CUDA devices\nversion: 0.5.0 (build 1, commit unknown)\nbuilt with GNU 14 for Linux\n",
            Some("0.5.0 (build 1, commit unknown)"),
        );
        check("version: 6500 (3d16b29c)\n", Some("6500 (3d16b29c)"));
        check("error: unknown argument\n", None);
        check("version: \n", None);
    }

    #[test]
    fn only_the_modelled_build_has_its_name() {
        let modelled = build_name(Some("0.5.0 (build 1, commit unknown)"));
        assert_eq!(modelled, ENGINE.name);
        // what the kit's engine says
        assert_eq!(build_name(Some("0.5.0-dev")), ENGINE.name);
        let built_with = |cuda| build_name(with_cuda(Some("0.5.0".to_string()), cuda).as_deref());
        assert_eq!(built_with(Some(13)), ENGINE.name);
        assert_eq!(built_with(None), ENGINE.name);
        assert_eq!(built_with(Some(11)), "llama.cpp 0.5.0, CUDA 11");
        for other in [
            Some("6500 (3d16b29c)"),
            Some("0.6.0-dev (build 2, commit a)"),
            None,
        ] {
            assert_ne!(build_name(other), ENGINE.name, "{other:?}");
        }
    }

    #[test]
    fn cuda_is_that_of_the_runtime_that_is_loaded() {
        let line = "7f00-7f01 r-xp 0 08:01 42  /usr/lib/x86_64-linux-gnu";
        assert_eq!(cuda(&format!("{line}/libcudart.so.11.0\n")), Some(11));
        assert_eq!(
            cuda(&format!("{line}/libc.so.6\n{line}/libcudart.so.13\n")),
            Some(13)
        );
        assert_eq!(cuda(&format!("{line}/libc.so.6\n")), None);
    }
}
