//! Calls that fail, and calls that never return: for tests of what a caller does then.

use std::sync::atomic::{AtomicU64, Ordering};

/// `VGPU_FAIL` and `VGPU_HANG`.
#[derive(Debug, Default)]
pub(crate) struct Faults {
    rules: Vec<Rule>,
}

#[derive(Debug)]
struct Rule {
    call: String,
    /// What the call answers; `None`: it never does.
    code: Option<i32>,
    /// From which call on, counted from 1.
    from: u64,
    calls: AtomicU64,
}

/// A name without `_v2`, so that a rule holds for each version of a call.
fn stem(name: &str) -> &str {
    match name.rsplit_once("_v") {
        Some((stem, version)) if version.chars().all(|c| c.is_ascii_digit()) => stem,
        _ => name,
    }
}

impl Faults {
    /// `fail` is `call:code[@from],..`, `hang` is `call[@from],..`. The text that is wrong, if some is.
    pub fn read(fail: &str, hang: &str) -> Result<Self, String> {
        let entries = |text: &str| -> Vec<String> {
            text.split(',')
                .map(str::trim)
                .filter(|entry| !entry.is_empty())
                .map(str::to_owned)
                .collect()
        };
        let mut rules = Vec::new();
        for (entry, fails) in entries(fail)
            .into_iter()
            .map(|entry| (entry, true))
            .chain(entries(hang).into_iter().map(|entry| (entry, false)))
        {
            let bad = || entry.clone();
            let (what, from) = match entry.split_once('@') {
                Some((what, from)) => (what, from.parse().map_err(|_| bad())?),
                None => (entry.as_str(), 1),
            };
            let (call, code) = match (fails, what.split_once(':')) {
                (true, Some((call, code))) => (call, Some(code.parse().map_err(|_| bad())?)),
                (false, None) => (what, None),
                _ => return Err(bad()),
            };
            rules.push(Rule {
                call: call.to_owned(),
                code,
                from,
                calls: AtomicU64::new(0),
            });
        }
        Ok(Faults { rules })
    }

    /// What this call has to answer in place of its own answer. Does not return where it has to hang.
    pub fn meet(&self, name: &str) -> Option<i32> {
        for rule in &self.rules {
            if rule.call != name && rule.call != stem(name) {
                continue;
            }
            if rule.calls.fetch_add(1, Ordering::Relaxed) + 1 < rule.from {
                continue;
            }
            match rule.code {
                Some(code) => return Some(code),
                None => loop {
                    // SAFETY: waits for a signal; no arguments.
                    unsafe { libc::pause() };
                },
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_holds_for_each_version_of_a_call_from_its_count_on() {
        let faults = Faults::read("cuInit:100, cuMemAlloc:2@3", "").expect("valid rules");
        assert_eq!(faults.meet("cuInit"), Some(100));
        assert_eq!(faults.meet("cuDeviceGet"), None);
        let answers: Vec<_> = (0..4).map(|_| faults.meet("cuMemAlloc_v2")).collect();
        assert_eq!(answers, [None, None, Some(2), Some(2)]);
    }

    #[test]
    fn a_rule_that_cannot_be_read_is_named() {
        for (fail, hang, wrong) in [
            ("cuInit", "", "cuInit"),
            ("cuInit:x", "", "cuInit:x"),
            ("", "cuInit:3", "cuInit:3"),
        ] {
            assert_eq!(Faults::read(fail, hang).err().as_deref(), Some(wrong));
        }
    }
}
