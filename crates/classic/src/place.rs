//! Handing out layers to GPUs.

use crate::estimate::{Share, Version};
use crate::graph::Graphs;
use crate::number::N;
use crate::vision::Vision;
use crate::{Facts, Gpu};

/// What the K80 fork charges GPUs before the last one for their graph.
const SECONDARY_GRAPH: u64 = 190 << 20;

/// What is handed out, and to whom.
pub(crate) struct Terms<'a> {
    pub model: &'a Facts,
    pub gpus: &'a [Gpu],
    /// Cache of each block.
    pub kv: Vec<u64>,
    /// The tower in the model's file.
    pub in_file: Vision,
    pub overhead: u64,
    pub num_gpu: Option<u64>,
    pub version: Version,
}

impl Terms<'_> {
    /// Weights and cache of a block.
    fn block(&self, il: usize) -> [u64; 2] {
        let of = |list: &[u64]| list.get(il).copied().unwrap_or(0);
        [of(&self.model.blocks), of(&self.kv)]
    }

    fn layer(&self, il: usize) -> u64 {
        let [weights, kv] = self.block(il);
        weights.saturating_add(kv)
    }

    /// What the first GPU with room is charged: projectors, and upstream the tower in the file.
    fn first(&self) -> Vision {
        let mut first = match self.version {
            Version::Upstream => self.in_file,
            Version::K80Fork => Vision::default(),
        };
        let files = self.model.projector_files_bytes;
        first.weights_bytes = first.weights_bytes.saturating_add(files);
        first
    }

    /// What goes with the output layer.
    fn with_output(&self) -> Vision {
        match self.version {
            Version::Upstream => Vision::default(),
            Version::K80Fork => self.in_file,
        }
    }

    fn last_layer(&self) -> u64 {
        let output = self.model.output_bytes;
        output.saturating_add(self.with_output().sum())
    }

    /// The graph on one of the GPUs, when it is `graph` on the one that does most.
    fn graph_on(&self, gpu: usize, graph: u64) -> u64 {
        match self.version {
            Version::K80Fork if gpu + 1 < self.gpus.len() => SECONDARY_GRAPH,
            _ => graph,
        }
    }
}

/// Whether the output layer may be handed out when all blocks were.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Held {
    /// It may.
    Nothing,
    /// It stays on the host: that everything fits has been tested and is not so.
    Output,
}

/// Who has what.
pub(crate) struct Placed {
    pub shares: Vec<Share>,
    pub n_layers: u64,
    pub fully_loaded: bool,
    /// What is on no GPU.
    pub overflow: u64,
}

/// Hands out the layers, `tested` being the graph that has to have room beside them.
pub(crate) fn place(terms: &Terms, tested: u64, graph: Graphs, held: Held) -> Placed {
    let mut round = Round::new(terms, tested);
    round.blocks();
    let n_layer = terms.model.n_layer() as u64;
    let mut fully_loaded = round.n_layers >= n_layer;
    let last = terms.last_layer();
    if last > 0 {
        let wanted = terms.num_gpu.is_none_or(|n| round.n_layers < n);
        if wanted && !(fully_loaded && held == Held::Output) {
            round.output();
        }
        if round.n_layers <= n_layer {
            fully_loaded = false;
            round.overflow = round.overflow.saturating_add(last);
        }
    }
    let graph = if fully_loaded {
        graph.full
    } else {
        graph.partial
    };
    for (gpu, share) in round.shares.iter_mut().enumerate() {
        if !share.layers.is_empty() {
            share.graph = terms.graph_on(gpu, graph);
        }
        share.layers.sort_unstable();
    }
    Placed {
        shares: round.shares,
        n_layers: round.n_layers,
        fully_loaded,
        overflow: round.overflow,
    }
}

struct Round<'a> {
    terms: &'a Terms<'a>,
    tested: u64,
    shares: Vec<Share>,
    /// GPUs that still have room.
    usable: Vec<usize>,
    n_layers: u64,
    overflow: u64,
}

impl<'a> Round<'a> {
    /// Drops GPUs without room for two layers; those that stay are charged with a minimum and a layer,
    /// the first of them with projectors.
    fn new(terms: &'a Terms<'a>, tested: u64) -> Round<'a> {
        let mut round = Round {
            terms,
            tested,
            shares: vec![Share::default(); terms.gpus.len()],
            usable: Vec::new(),
            n_layers: 0,
            overflow: 0,
        };
        let (first, buffer) = (terms.first(), terms.layer(0));
        for (i, (gpu, share)) in terms.gpus.iter().zip(&mut round.shares).enumerate() {
            let is_first = round.usable.is_empty();
            let projectors = if is_first { first.sum() } else { 0 };
            let least = N(terms.overhead) + projectors + terms.graph_on(i, tested);
            if N(gpu.free_bytes) < least + gpu.minimum_bytes + 2 * N(buffer) {
                continue;
            }
            round.usable.push(i);
            (share.minimum, share.layer_buffer) = (gpu.minimum_bytes, buffer);
            if is_first {
                share.projector_weights = first.weights_bytes;
                share.projector_graph = first.graph_bytes;
            }
        }
        if round.usable.is_empty() {
            round.overflow = first.sum();
        }
        round
    }

    fn has_room(&self, gpu: usize, bytes: u64) -> bool {
        let (Some(share), Some(of)) = (self.shares.get(gpu), self.terms.gpus.get(gpu)) else {
            return false;
        };
        let graph = self.terms.graph_on(gpu, self.tested);
        N(of.free_bytes) > N(self.terms.overhead) + share.sum() + graph + bytes
    }

    fn blocks(&mut self) {
        let n_layer = self.terms.model.n_layer();
        for step in 0..n_layer {
            let il = match self.terms.version {
                Version::Upstream => step,
                Version::K80Fork => n_layer - 1 - step,
            };
            let bytes = self.terms.layer(il);
            let enough = self.terms.num_gpu.is_some_and(|n| self.n_layers >= n);
            let gpu = if enough {
                None
            } else {
                self.gpu_for(il, bytes)
            };
            match gpu.and_then(|gpu| self.shares.get_mut(gpu)) {
                Some(share) => {
                    let [weights, kv] = self.terms.block(il);
                    share.repeating = share.repeating.saturating_add(weights);
                    share.kv = share.kv.saturating_add(kv);
                    share.layers.push(il);
                    self.n_layers += 1;
                }
                None => self.overflow = self.overflow.saturating_add(bytes),
            }
        }
    }

    /// The next GPU in turn, or for the fork the last one; those without room are out for good.
    fn gpu_for(&mut self, il: usize, bytes: u64) -> Option<usize> {
        while !self.usable.is_empty() {
            let at = match self.terms.version {
                Version::Upstream => il % self.usable.len(),
                Version::K80Fork => self.usable.len() - 1,
            };
            let gpu = self.usable.get(at).copied()?;
            if self.has_room(gpu, bytes) {
                return Some(gpu);
            }
            self.usable.remove(at);
        }
        None
    }

    fn output(&mut self) {
        let last = self.terms.last_layer();
        let gpu = (1..=self.usable.len()).rev().find_map(|n| {
            let at = match self.terms.version {
                Version::Upstream => self.n_layers as usize % n,
                Version::K80Fork => n - 1,
            };
            let gpu = self.usable.get(at).copied()?;
            self.has_room(gpu, last).then_some(gpu)
        });
        let with = self.terms.with_output();
        if let Some(share) = gpu.and_then(|gpu| self.shares.get_mut(gpu)) {
            share.output = self.terms.model.output_bytes;
            share.projector_weights = share.projector_weights.saturating_add(with.weights_bytes);
            share.projector_graph = share.projector_graph.saturating_add(with.graph_bytes);
            share.layers.push(self.terms.model.n_layer());
            self.n_layers += 1;
        }
    }
}
