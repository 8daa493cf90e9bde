//! A difference in as few words as it takes.

use std::collections::BTreeSet;

use crate::case::Gpu;
use crate::settings::Settings;

/// Runs spent on one difference.
const RUNS: usize = 120;

/// The simplest settings that still differ: one thing is dropped, defaulted or halved at a time.
pub fn minimise(start: Settings, mut differs: impl FnMut(&Settings) -> bool) -> Settings {
    let mut smallest = start;
    let mut tried = BTreeSet::new();
    while tried.len() < RUNS {
        let mut untried = simpler(&smallest).into_iter();
        let next =
            untried.find(|s| tried.len() < RUNS && tried.insert(format!("{s:?}")) && differs(s));
        let Some(next) = next else { break };
        smallest = next;
    }
    smallest
}

/// Settings one step simpler, the largest steps first.
fn simpler(s: &Settings) -> Vec<Settings> {
    let mut list = Vec::new();
    let mut put = |change: &dyn Fn(&mut Settings)| {
        let mut changed = s.clone();
        change(&mut changed);
        if changed != *s {
            list.push(changed);
        }
    };
    for i in 0..flags(&s.more).len() {
        put(&|s| {
            let mut all = flags(&s.more);
            all.remove(i);
            s.more = all.concat();
        });
    }
    if s.gpus.len() > 1 {
        for i in 0..s.gpus.len() {
            put(&|s| drop(s.gpus.remove(i)));
        }
    }
    put(&|s| {
        s.gpus.fill(Gpu {
            total_bytes: 80 << 30,
            compute_capability: "8.6".to_owned(),
        })
    });
    put(&|s| s.kv_unified = false);
    put(&|s| (s.n_parallel, s.kv_unified) = (1, false));
    put(&|s| s.cache_types = ("f16", "f16"));
    put(&|s| s.cache_types.0 = "f16");
    put(&|s| s.cache_types.1 = "f16");
    put(&|s| s.flash_attn = "on");
    put(&|s| s.n_gpu_layers = 99);
    put(&|s| s.n_outputs = 1);
    put(&|s| s.n_batch = 2048);
    put(&|s| s.n_ubatch = 512);
    if s.n_ctx == 0 || s.n_ctx > 4096 {
        put(&|s| s.n_ctx = 4096);
    }
    if s.n_ctx > 256 {
        put(&|s| s.n_ctx /= 2);
    }
    if s.n_ubatch > 1 && s.n_ubatch != 512 {
        put(&|s| s.n_ubatch /= 2);
    }
    if s.n_parallel > 2 {
        put(&|s| s.n_parallel /= 2);
    }
    if s.n_gpu_layers != 99 {
        put(&|s| s.n_gpu_layers /= 2);
    }
    list
}

/// Words as flags with their values: `-sm none`, `--no-mmap`.
fn flags(words: &[String]) -> Vec<Vec<String>> {
    let mut list: Vec<Vec<String>> = Vec::new();
    for word in words {
        match list.last_mut() {
            Some(flag) if !word.starts_with('-') => flag.push(word.clone()),
            _ => list.push(vec![word.clone()]),
        }
    }
    list
}

#[cfg(test)]
mod tests {
    use super::*;

    fn start() -> Settings {
        let gpu = |mib: u64| Gpu {
            total_bytes: mib << 20,
            compute_capability: "7.5".to_owned(),
        };
        Settings {
            n_ctx: 32_768,
            n_ubatch: 2048,
            cache_types: ("q8_0", "q4_0"),
            n_gpu_layers: 13,
            ..Settings::plain(vec![gpu(1), gpu(2), gpu(3)])
        }
        .with("-ts 1,2,3 --no-mmap -nkvo")
    }

    #[test]
    fn only_what_matters_is_left() {
        let matters = |s: &Settings| {
            s.gpus.len() >= 2
                && s.n_ctx >= 1024
                && s.cache_types.1 == "q4_0"
                && s.more.contains(&"-nkvo".to_owned())
        };
        let small = minimise(start(), matters);
        assert_eq!(
            (small.gpus.len(), small.n_ctx, small.cache_types),
            (2, 1024, ("f16", "q4_0"))
        );
        assert_eq!(
            (small.more, small.n_gpu_layers, small.n_ubatch),
            (vec!["-nkvo".to_owned()], 99, 512)
        );
    }

    #[test]
    fn what_nothing_simpler_shows_is_kept() {
        let whole = start();
        assert_eq!(minimise(whole.clone(), |_| false), whole);
    }

    #[test]
    fn it_ends_when_everything_differs() {
        let mut runs = 0;
        let small = minimise(start(), |_| {
            runs += 1;
            true
        });
        assert_eq!(
            (small.gpus.len(), small.n_ctx, small.more.len()),
            (1, 256, 0)
        );
        assert!(runs <= RUNS);
    }
}
