//! What every layer adds to the GPU it is on: weights and cache. These bytes are additive, so the
//! search can reason about splits without an estimate. Compute buffers are not here.

use crate::OverrideTarget;
use crate::fit::{Candidate, HostExperts, Problem};
use std::collections::BTreeMap;
use vramfit_arch::cache::cache_tensors;
use vramfit_arch::{CpuRepack, LoadedTensor, ModelTensor, WeightMap};
use vramfit_estimate::Error;
use vramfit_ggml::cuda::{Cuda, PoolKind};
use vramfit_ggml::{Backend, BufferType, ComputeCapability};

/// Additive bytes of one model, run and set of pinned overrides.
pub(crate) struct Sheet {
    /// Bytes of each placement on a GPU, the output layer last.
    layers: Vec<u64>,
    /// Of them, experts.
    experts: Vec<u64>,
    /// Tensors that pinned overrides send to a GPU, whatever the layers do.
    fixed: Vec<u64>,
    /// Which kind each layer is; layers of a kind have the same tensors.
    kinds: Vec<u32>,
}

/// Sums over ranges of layers.
pub(crate) struct Sums(Vec<u64>);

impl Sums {
    /// Bytes of placements `from..to`.
    pub fn bytes(&self, from: usize, to: usize) -> u64 {
        let at = |i: usize| self.0.get(i).copied().unwrap_or(0);
        at(to).saturating_sub(at(from))
    }
}

/// Any GPU: sizes in memory are the same on all.
const CUDA: Backend = Backend::Cuda(Cuda {
    index: 0,
    compute_capability: ComputeCapability(0),
    compiled: None,
    integrated: false,
    sm_count: None,
    pool: PoolKind::Vmm,
});

impl Sheet {
    pub fn new(problem: &Problem) -> Result<Sheet, Error> {
        let model = problem.model;
        let n = problem.n_placements();
        let params = problem.run.resolve(model)?;
        let n_devices = problem.devices.len();
        // Layers go to a GPU that no override names, so that the two are told apart.
        let probe = BufferType::device(n_devices);
        let loaded = loaded(problem, &vec![probe; n])?;
        let mut output_only = vec![BufferType::HOST; n];
        output_only[n - 1] = probe;
        let of_output = tensors_on(&self::loaded(problem, &output_only)?, probe);
        let experts_pattern = problem.experts_pattern();

        let mut sheet = Sheet {
            layers: vec![0; n],
            experts: vec![0; n],
            fixed: vec![0; n_devices],
            kinds: Vec::new(),
        };
        for t in &loaded {
            let tensor = &model.tensors[t.tensor];
            let bytes = CUDA.placed_size(tensor.ty, tensor.ne, tensor.n_bytes);
            if t.buffer == probe {
                let at = match tensor.role.layer() {
                    Some(il) => il,
                    None if of_output.contains(&t.tensor) => n - 1,
                    None => 0,
                };
                sheet.layers[at] = sheet.layers[at].saturating_add(bytes);
                let is_expert = experts_pattern
                    .as_ref()
                    .is_some_and(|p| p.is_match(&tensor.name));
                if is_expert {
                    sheet.experts[at] = sheet.experts[at].saturating_add(bytes);
                }
            } else if let Some(fixed) = t.buffer.device_index().and_then(|d| sheet.fixed.get_mut(d))
            {
                *fixed = fixed.saturating_add(bytes);
            }
        }
        if params.offload_kqv {
            for il in 0..model.hparams.layers.len() {
                let sizes = cache_tensors(&model.hparams, &params, il);
                let bytes = sizes.map(|t| CUDA.placed_size(t.ty, t.ne, t.n_bytes()));
                sheet.layers[il] += bytes.sum::<u64>();
            }
        }
        sheet.kinds = kinds(problem, n);
        Ok(sheet)
    }

    /// Placements: layers and the output layer.
    pub fn n_placements(&self) -> usize {
        self.layers.len()
    }

    /// Whether there are experts that could stay on the host.
    pub fn has_experts(&self) -> bool {
        self.experts.iter().any(|&bytes| bytes > 0)
    }

    /// Layers up to the last one with experts.
    pub fn n_expert_layers(&self) -> usize {
        self.experts
            .iter()
            .rposition(|&bytes| bytes > 0)
            .map_or(0, |il| il + 1)
    }

    /// Bytes that are on `device` whatever the layers do.
    pub fn fixed(&self, device: usize) -> u64 {
        self.fixed.get(device).copied().unwrap_or(0)
    }

    /// Sums of layers whose experts may be on the host.
    pub fn sums(&self, host_experts: HostExperts) -> Sums {
        let mut sums = vec![0];
        let mut sum = 0;
        for (il, bytes) in self.layers.iter().enumerate() {
            let kept = if host_experts.of_layer(il) {
                self.experts[il]
            } else {
                0
            };
            sum += bytes - kept;
            sums.push(sum);
        }
        Sums(sums)
    }

    /// A bit for the kind of layer `il`; layers with their experts on the host are another kind.
    pub fn kind(&self, il: usize, host_experts: HostExperts) -> u64 {
        let split = host_experts.of_layer(il) && self.experts.get(il).is_some_and(|&b| b > 0);
        let kind = self.kinds.get(il).copied().unwrap_or(0);
        1 << ((2 * kind + u32::from(split)) % 64)
    }

    /// Whether layer `il` sends work to the host's experts.
    pub fn splits_experts(&self, il: usize, host_experts: HostExperts) -> bool {
        host_experts.of_layer(il) && self.experts.get(il).is_some_and(|&b| b > 0)
    }
}

/// What llama.cpp loads where with these homes of the layers; one GPU more than there are.
fn loaded(problem: &Problem, layers: &[BufferType]) -> Result<Vec<LoadedTensor>, Error> {
    let all: Vec<usize> = (0..problem.devices.len()).collect();
    let overrides = problem.overrides(&Candidate::default(), &all)?;
    let map = WeightMap::new(
        problem.model,
        layers,
        all.len() + 1,
        true,
        &overrides,
        CpuRepack::Off,
    );
    Ok(map.loaded(problem.model))
}

fn tensors_on(loaded: &[LoadedTensor], buffer: BufferType) -> Vec<usize> {
    let on = |t: &LoadedTensor| (t.buffer == buffer).then_some(t.tensor);
    loaded.iter().filter_map(on).collect()
}

/// Layers are of a kind when their tensors and their shape are the same.
fn kinds(problem: &Problem, n: usize) -> Vec<u32> {
    let shape = |t: &ModelTensor| (t.name.split('.').skip(2).collect::<String>(), t.ty, t.ne);
    let mut tensors = vec![Vec::new(); n];
    for t in &problem.model.tensors {
        if let Some(il) = t.role.layer()
            && let Some(of_layer) = tensors.get_mut(il)
        {
            of_layer.push(shape(t));
        }
    }
    let mut seen = BTreeMap::new();
    let hparams = &problem.model.hparams;
    tensors
        .into_iter()
        .enumerate()
        .map(|(il, mut tensors)| {
            tensors.sort();
            let hp = hparams.layers.get(il);
            let hp = hp.map(|l| (l.is_swa, l.is_recurrent, l.is_cached, l.n_head, l.n_head_kv));
            let (is_output, has_kv) = (il + 1 == n, il < hparams.n_layer_kv);
            let next = seen.len() as u32;
            *seen.entry((is_output, has_kv, hp, tensors)).or_insert(next)
        })
        .collect()
}

/// Whether the user pinned an override to a GPU: then it has to be in use.
pub(crate) fn required_devices(problem: &Problem) -> Vec<usize> {
    let target = |o: &crate::Override| match o.target {
        OverrideTarget::Device(d) => Some(d),
        OverrideTarget::Host => None,
    };
    let mut devices: Vec<usize> = problem
        .policy
        .pinned
        .overrides
        .iter()
        .filter_map(target)
        .collect();
    devices.sort_unstable();
    devices.dedup();
    devices
}
