//! What the engine itself says of its buffers, in its log: `CUDA0 model buffer size =  4095.05 MiB`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::Expected;

/// In the log sizes are rounded to hundredths of a MiB.
const HUNDREDTH: f64 = (1 << 20) as f64 / 100.0;

/// Bytes of one GPU by the engine's own account.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SaidBuffers {
    /// Weights.
    pub model_bytes: u64,
    /// Caches and recurrent state.
    pub context_bytes: u64,
    /// Compute buffer.
    pub compute_bytes: u64,
    /// Each of the three may be off by so much, for the log's rounding; 0 where the engine says bytes.
    pub rounding_bytes: u64,
}

impl SaidBuffers {
    /// Whether these are the same three figures.
    pub fn agrees(&self, [model, context, compute]: [u64; 3]) -> bool {
        let same = |said: u64, predicted: u64| said.abs_diff(predicted) <= self.rounding_bytes;
        same(self.model_bytes, model)
            && same(self.context_bytes, context)
            && same(self.compute_bytes, compute)
    }
}

/// Reads the log up to now: by GPU, those that it names. Of several contexts each has compute buffers of its own, but which one has
/// reserved anew the log does not say: with a draft the `expected` sizes are looked for.
pub fn said_buffers(log: &str, expected: &Expected) -> BTreeMap<usize, SaidBuffers> {
    let mut said: BTreeMap<usize, SaidBuffers> = BTreeMap::new();
    let mut lines: BTreeMap<usize, u64> = BTreeMap::new();
    let mut computes: BTreeMap<usize, Vec<u64>> = BTreeMap::new();
    for line in log.lines() {
        let Some((device, what, bytes)) = buffer(line) else {
            continue;
        };
        let of = said.entry(device).or_default();
        match what {
            "model" | "LoRA" => of.model_bytes = of.model_bytes.saturating_add(bytes),
            "KV" | "RS" => of.context_bytes = of.context_bytes.saturating_add(bytes),
            // A projector's is told apart by who says it.
            "compute" if line.contains(PROJECTOR) => continue,
            "compute" => computes.entry(device).or_default().push(bytes),
            _ if what.ends_with("state") => {
                of.context_bytes = of.context_bytes.saturating_add(bytes);
            }
            _ => continue,
        }
        *lines.entry(device).or_default() += 1;
    }
    for (device, said) in &mut said {
        let n = lines.get(device).copied().unwrap_or(0);
        said.rounding_bytes = (HUNDREDTH * n as f64) as u64;
        let own = computes.get(device).map_or(&[][..], Vec::as_slice);
        said.compute_bytes = compute(own, expected, *device);
    }
    said
}

/// Who says the size of a projector's compute buffer.
const PROJECTOR: &str = "alloc_compute_meta";

/// The last one counts, as llama.cpp may reserve anew; with a draft the last of either.
fn compute(said: &[u64], expected: &Expected, device: usize) -> u64 {
    let last = said.last().copied().unwrap_or(0);
    let Some(device) = expected.devices.get(device) else {
        return last;
    };
    if !expected.has_draft {
        return last;
    }
    let mut said = said.to_vec();
    let mut sum = 0u64;
    for bytes in [device.compute_bytes, device.draft.compute_bytes] {
        let near = |n: &u64| n.abs_diff(bytes) <= HUNDREDTH as u64;
        // a line is either's, not both's
        if let Some(at) = said.iter().rposition(near) {
            sum = sum.saturating_add(said.remove(at));
        }
    }
    sum
}

/// `prefix:  CUDA0 model buffer size =  4095.05 MiB`
fn buffer(line: &str) -> Option<(usize, &str, u64)> {
    let (before, size) = line.split_once(" buffer size =")?;
    let size = size.trim().strip_suffix("MiB")?.trim();
    let mib: f64 = size
        .parse()
        .ok()
        .filter(|n: &f64| n.is_finite() && *n >= 0.0)?;
    let at = before.rfind("CUDA")?;
    let (device, what) = before.get(at + 4..)?.split_once(' ')?;
    let device = device.parse().ok()?;
    Some((device, what.trim(), (mib * (1 << 20) as f64) as u64))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Beside, ExpectedDevice};

    #[test]
    fn buffers_are_read_from_the_log() {
        let log = "\
load_tensors:   CPU_Mapped model buffer size =   417.66 MiB
load_tensors:        CUDA0 model buffer size =  3917.36 MiB
0.01.234 I load_tensors:        CUDA1 model buffer size =  4231.02 MiB
llama_kv_cache:      CUDA0 KV buffer size =   100.00 MiB
llama_kv_cache:      CUDA0 KV buffer size =   100.00 MiB
llama_memory_recurrent:      CUDA1 RS buffer size =     1.50 MiB
llama_context:  CUDA_Host  output buffer size =     0.58 MiB
sched_reserve:      CUDA0 compute buffer size =   300.00 MiB
sched_reserve:      CUDA0 compute buffer size =   272.02 MiB
sched_reserve:  CUDA_Host compute buffer size =    52.04 MiB
sched_reserve:      CUDA1 compute buffer size =   nan MiB
";
        let mut expected = Expected::default();
        let said = said_buffers(log, &expected);
        assert_eq!(said.keys().copied().collect::<Vec<_>>(), [0, 1]);
        let mib = |n: f64| (n * (1 << 20) as f64) as u64;
        let exact = [mib(3917.36328125), mib(200.0), mib(272.0234375)];
        assert!(said[&0].agrees(exact));
        assert!(!said[&0].agrees([exact[0] + mib(0.1), exact[1], exact[2]]));
        assert_eq!(said[&1].context_bytes, mib(1.5));
        assert_eq!(said[&1].compute_bytes, 0);

        // a draft's, and then the model's once more: both are named, whichever was the last
        expected.has_draft = true;
        expected.devices = vec![ExpectedDevice {
            compute_bytes: mib(300.0),
            draft: Beside {
                compute_bytes: mib(272.0234375),
                ..Beside::default()
            },
            ..ExpectedDevice::default()
        }];
        let clip = "alloc_compute_meta:      CUDA0 compute buffer size =   132.02 MiB\n";
        let said = said_buffers(&format!("{log}{clip}"), &expected);
        assert!(said[&0].agrees([exact[0], exact[1], mib(572.0234375)]));
        expected.devices[0].draft.compute_bytes = mib(271.0);
        let said = said_buffers(log, &expected);
        assert!(!said[&0].agrees([exact[0], exact[1], mib(571.0)]));
    }
}
