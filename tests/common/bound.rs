//! An architecture that is not known, or taken as unknown, held against what the engine took.

use super::truth::{self, Row};
use vramfit_arch::Model;
use vramfit_estimate::{Bounded, Breakdown, EngineProfile, MemoryBytes};

/// One memory: bytes of the model, of caches and of compute buffers.
pub struct Held {
    /// The engine's.
    pub engine: [u64; 3],
    /// Ours.
    pub bound: [u64; 3],
    /// Whether the weights are promised to be exact.
    pub are_weights_exact: bool,
}

impl Held {
    /// Whether no figure is below the engine's, and the weights are what they are promised to be.
    pub fn holds(&self) -> bool {
        let [weights, ..] = self.engine;
        let mut figures = self.bound.iter().zip(&self.engine);
        figures.all(|(ours, engine)| ours >= engine)
            && (!self.are_weights_exact || self.bound[0] == weights)
    }
}

/// All memories of a row that the engine loaded, the host last.
pub fn held(row: &Row, model: &Model) -> Vec<Held> {
    let memories = truth::memories(&row.expected).unwrap();
    let devices = row.devices();
    let (run, layout) = row.settings(&devices, model).unwrap();
    let profile = EngineProfile::LLAMA_CPP_V0_5_0;
    let b = Breakdown::estimate(model, &run, &layout, &profile).unwrap();
    assert!(b.bounded.is_bound());
    let names = devices.iter().map(|d| format!("CUDA{}", d.index));
    let names = names.chain(["host".to_string()]);
    let of = |(name, m): (String, &MemoryBytes)| Held {
        engine: memories.get(name.as_str()).copied().unwrap_or_default(),
        bound: [m.model, m.context, m.compute],
        are_weights_exact: b.bounded == Bounded::AllButWeights,
    };
    names
        .zip(b.devices.iter().chain([&b.host]))
        .map(of)
        .collect()
}
