//! How later versions hand out layers (from mid-2025, with sizes measured on the engine instead of
//! formulas): from the last layer back, onto as few GPUs as will do, evenly filled.

use crate::Gpu;

/// Layers of one GPU.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Assigned {
    /// Index of the GPU.
    pub gpu: usize,
    /// Its layers, ascending.
    pub layers: Vec<usize>,
}

/// Hands out `layers` (bytes each, the output layer last). Nothing that was asked for by number is
/// forced: `num_gpu` only ends the handing out.
pub fn later(layers: &[u64], gpus: &[Gpu], num_gpu: Option<usize>) -> Vec<Assigned> {
    let free = |gpu: &Gpu| gpu.free_bytes.saturating_sub(gpu.minimum_bytes);
    let mut free: Vec<(usize, u64)> = gpus.iter().map(free).enumerate().collect();
    free.sort_by_key(|&(_, bytes)| std::cmp::Reverse(bytes));
    let mut found = Vec::new();
    // Where not everything fits, the output layer stays on the host.
    for n in [layers.len(), layers.len().saturating_sub(1)] {
        let layers = layers.get(..n).unwrap_or_default();
        let wanted = num_gpu.map_or(n, |wanted| wanted.min(n));
        for n_gpus in 1..=free.len() {
            found = even(layers, free.get(..n_gpus).unwrap_or_default(), wanted);
            if count(&found) == wanted {
                return found;
            }
        }
    }
    found
}

fn count(assigned: &[Assigned]) -> usize {
    assigned.iter().map(|a| a.layers.len()).sum()
}

/// The smallest share of each GPU's memory that takes as many layers as all of it.
fn even(layers: &[u64], gpus: &[(usize, u64)], wanted: usize) -> Vec<Assigned> {
    let (mut low, mut high) = (0f32, 1f32);
    let mut best = greedy(layers, gpus, high, wanted);
    let most = count(&best);
    while most > 0 && high - low > 1e-6 {
        let mid = (low + high) / 2.0;
        let assigned = greedy(layers, gpus, mid, wanted);
        if count(&assigned) == most {
            (high, best) = (mid, assigned);
        } else {
            low = mid;
        }
    }
    best
}

/// From the last layer and the GPU with the least memory, on to the next GPU when one is full.
fn greedy(layers: &[u64], gpus: &[(usize, u64)], capacity: f32, wanted: usize) -> Vec<Assigned> {
    let mut found: Vec<Assigned> = Vec::new();
    let mut gpus = gpus.iter().rev();
    let space = |bytes: u64| (bytes as f32 * capacity) as u64;
    let Some(&(mut gpu, bytes)) = gpus.next() else {
        return found;
    };
    let mut left = space(bytes);
    for (il, &layer) in layers.iter().enumerate().rev().take(wanted) {
        while layer > left {
            let Some(&(next, bytes)) = gpus.next() else {
                return found;
            };
            (gpu, left) = (next, space(bytes));
        }
        left -= layer;
        match found.first_mut() {
            Some(first) if first.gpu == gpu => first.layers.insert(0, il),
            _ => found.insert(
                0,
                Assigned {
                    gpu,
                    layers: vec![il],
                },
            ),
        }
    }
    found
}
