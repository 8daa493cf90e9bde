//! Which memory each tensor of the model is loaded into (`llama_model_base::load_tensors`).

use crate::model::{Model, ModelTensor};
use crate::names::{Global, Home, Kind, Name, Part, Use};
use crate::role::{Lent, LentTensor};
use regex::Regex;
use vramfit_ggml::cuda::gets_rows;
use vramfit_ggml::{BackendId, BufferType, Type};

/// Tensors whose name matches go to a memory of the user's choice (`--override-tensor`).
#[derive(Clone, Debug)]
pub struct TensorOverride {
    /// Searched for in the tensor's name.
    pub pattern: Regex,
    /// Where they go.
    pub buffer: BufferType,
}

/// Matrices that ggml-cpu re-orders for its own kernels (`CPU_REPACK`), by what the host's CPU can
/// do. Only weights that no device's pinned memory holds are re-ordered.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum CpuRepack {
    /// None are: `--no-repack`, or a CPU without kernels.
    Off,
    /// x86-64 with AVX2.
    #[default]
    Avx2,
    /// x86-64 with AVX-512.
    Avx512,
}

impl CpuRepack {
    /// `ggml_repack_get_optimal_repack_type`: there is a kernel for matrices of `ty` with rows
    /// in groups of eight.
    fn takes(self, ty: Type, n_rows: i64) -> bool {
        let with_avx2 = matches!(ty, Type::Q4_0 | Type::Q4_K | Type::IQ4_NL | Type::MXFP4);
        let known = match self {
            CpuRepack::Off => false,
            CpuRepack::Avx2 => with_avx2,
            CpuRepack::Avx512 => with_avx2 || ty == Type::Q2_K,
        };
        known && n_rows % 8 == 0
    }
}

/// The memory of every layer and weight.
#[derive(Clone, Debug)]
pub struct WeightMap {
    layers: Vec<BufferType>,
    output: BufferType,
    /// Memory of each tensor of the file that does not simply follow its layer.
    special: Vec<Option<BufferType>>,
    n_devices: usize,
    repack: CpuRepack,
    /// Every layer and the output layer are on devices (`n_gpu_layers > n_layer_all`).
    pub full_offload: bool,
}

/// One tensor in one memory. A tied output matrix and the factors of RoPE are there several times.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LoadedTensor {
    /// Index in [`Model::tensors`].
    pub tensor: usize,
    /// Where it is.
    pub buffer: BufferType,
    /// On the host, re-ordered in a buffer of its own.
    pub repacked: bool,
}

impl WeightMap {
    /// `layers` has the memory of each of the `n_layer_all` layers, the output layer behind them.
    pub fn new(
        model: &Model,
        layers: &[BufferType],
        n_devices: usize,
        full_offload: bool,
        overrides: &[TensorOverride],
        repack: CpuRepack,
    ) -> WeightMap {
        let n_layer_all = model.hparams.n_layer_all;
        let output = layers.get(n_layer_all).copied().unwrap_or(BufferType::HOST);
        let mut map = WeightMap {
            layers: layers[..n_layer_all.min(layers.len())].to_vec(),
            output,
            special: Vec::new(),
            n_devices,
            repack,
            full_offload,
        };
        let special = |tensor: &ModelTensor| {
            let chosen = overrides.iter().find(|o| o.pattern.is_match(&tensor.name));
            let unfit = || n_devices > 0 && !runs_on_cuda(model, tensor);
            if model.is_read_lazily(tensor) {
                return Some(BufferType::HOST);
            }
            chosen
                .map(|o| o.buffer)
                .or_else(|| unfit().then_some(BufferType::HOST))
        };
        map.special = model.tensors.iter().map(special).collect();
        map
    }

    /// Memory of layer `il`.
    pub fn layer(&self, il: usize) -> BufferType {
        self.layers.get(il).copied().unwrap_or(BufferType::HOST)
    }

    /// Memory of the output layer.
    pub fn output(&self) -> BufferType {
        self.output
    }

    /// The scheduler's backend that computes in `buffer`.
    pub fn backend(&self, buffer: BufferType) -> BackendId {
        BackendId(buffer.device_index().unwrap_or(self.n_devices) as u8)
    }

    /// Memory of tensor `index` where it would go to `default` by itself.
    pub fn buffer(&self, index: usize, default: BufferType) -> BufferType {
        self.special[index].unwrap_or(default)
    }

    /// Memory of tensor `index` as the scheduler sees it: re-ordered weights are no host memory.
    pub(crate) fn graph_buffer(
        &self,
        model: &Model,
        index: usize,
        default: BufferType,
        as_output: bool,
    ) -> BufferType {
        let buffer = self.buffer(index, default);
        let repacked =
            buffer == BufferType::HOST && self.is_repacked(&model.tensors[index], as_output);
        if repacked {
            BufferType::HOST_REPACKED
        } else {
            buffer
        }
    }

    /// What the model lends to a draft: its embeddings and its output matrix, as its own graph reads them.
    pub fn lends(&self, model: &Model) -> Lent {
        let find = |global, part, home, as_output| {
            let index = model.global_tensor(global, part)?;
            let tensor = &model.tensors[index];
            let buffer = self.graph_buffer(model, index, home, as_output);
            Some(LentTensor {
                ty: tensor.ty,
                ne: tensor.ne,
                buffer,
            })
        };
        let embd = |home, as_output| find(Global::TokenEmbd, Part::Weight, home, as_output);
        let output = find(Global::Output, Part::Weight, self.output, false);
        Lent {
            token_embd: embd(BufferType::HOST, false),
            output: output.or_else(|| embd(self.output, true)),
            output_scale: find(Global::Output, Part::Scale, self.output, false),
            caches: None,
        }
    }

    /// Where a tensor outside the layers goes by itself, when it is needed once.
    fn global_home(&self, model: &Model, global: Global) -> BufferType {
        match global.home() {
            Home::Input => BufferType::HOST,
            Home::Layer
                if global == Global::TokenEmbdNorm && model.architecture.embd_norm_is_output =>
            {
                self.output
            }
            Home::Layer => self.layer(0),
            Home::Output => self.output,
        }
    }

    /// Every tensor that llama.cpp creates, in file order, copies behind the original.
    pub fn loaded(&self, model: &Model) -> Vec<LoadedTensor> {
        let mut loaded = Vec::with_capacity(model.tensors.len() + 8);
        for (tensor, info) in model.tensors.iter().enumerate() {
            if !model.is_loaded(tensor) {
                continue;
            }
            let mut put = |buffer| {
                let repacked = buffer == BufferType::HOST && self.is_repacked(info, false);
                loaded.push(LoadedTensor {
                    tensor,
                    buffer,
                    repacked,
                });
            };
            match info.role {
                Name::Layer(il, ..) | Name::Other(Some(il)) => {
                    let home = self.buffer(tensor, self.layer(il));
                    put(home);
                    if home != BufferType::HOST && model.has_two_homes(tensor) {
                        put(BufferType::HOST); // whether a device can read it is not known
                    }
                }
                Name::Global(
                    Global::RopeFreqs | Global::RopeFactorsLong | Global::RopeFactorsShort,
                    _,
                ) => self
                    .rope_factor_homes(model, tensor)
                    .into_iter()
                    .for_each(put),
                Name::Global(global, _) => {
                    let home = self.buffer(tensor, self.global_home(model, global));
                    put(home);
                    if global == Global::TokenEmbdNorm && home != self.output && !model.is_known() {
                        put(self.output); // a layer's norm, or the last
                    }
                    if global == Global::TokenEmbd && model.has_tied_output() {
                        loaded.extend(self.tied_output(model, tensor, home));
                    } else if global == Global::Output && model.embeds_by_output() {
                        put(home);
                    }
                }
                Name::Other(None) => {
                    let home = self.buffer(tensor, self.output);
                    put(home);
                    if home != BufferType::HOST {
                        put(BufferType::HOST);
                    }
                }
            }
        }
        loaded
    }

    /// The embedding again, as output matrix, unless the two can be one.
    fn tied_output(&self, model: &Model, tensor: usize, home: BufferType) -> Option<LoadedTensor> {
        let buffer = self.buffer(tensor, self.output);
        let repacked = buffer == BufferType::HOST && self.is_repacked(&model.tensors[tensor], true);
        let is_own = buffer != home || repacked || model.architecture.makes_output_first;
        is_own.then_some(LoadedTensor {
            tensor,
            buffer,
            repacked,
        })
    }

    /// Whether a host tensor is a matrix that ggml-cpu re-orders. Embeddings are not, but an
    /// output matrix made of one is.
    fn is_repacked(&self, tensor: &ModelTensor, as_output: bool) -> bool {
        if self.repack == CpuRepack::Off {
            return false;
        }
        let n_dims = match tensor.role {
            Name::Layer(_, kind, part) => match part.used_by(kind.used_by()) {
                Use::MulMatId => 3,
                Use::MulMat => 2,
                _ => return false,
            },
            Name::Global(global, _) if global.used_by() == Use::GetRows && !as_output => {
                return false;
            }
            _ => 2,
        };
        let dims = tensor.ne.iter().rposition(|&n| n != 1).map_or(1, |i| i + 1);
        dims == n_dims && self.repack.takes(tensor.ty, tensor.ne[1])
    }

    /// One copy of the factors in each memory that holds a layer which rotates with them.
    fn rope_factor_homes(&self, model: &Model, tensor: usize) -> Vec<BufferType> {
        let mut homes = Vec::new();
        let main = model
            .hparams
            .layers
            .iter()
            .take(model.hparams.n_layer_loaded());
        for layer in main {
            let home = self.buffer(tensor, self.layer(layer.block));
            let used = !(model.architecture.rope_freqs_skip_swa && layer.is_swa);
            if used && !homes.contains(&home) {
                homes.push(home);
            }
        }
        homes
    }
}

/// `weight_buft_supported` for CUDA: the operation that reads the tensor can run on a device.
fn runs_on_cuda(model: &Model, tensor: &ModelTensor) -> bool {
    let (used_by, part) = match tensor.role {
        Name::Layer(_, Kind::SsmA, _) if !model.architecture.scans || !model.is_known() => {
            (Use::Mul, Part::Weight)
        }
        Name::Layer(_, kind, part) => (part.used_by(kind.used_by()), part),
        Name::Global(global, part) => (global.used_by(), part),
        Name::Other(_) => return true,
    };
    let is_float = matches!(tensor.ty, Type::F32 | Type::F16);
    if part == Part::Bias {
        return is_float || used_by == Use::MulMatId;
    }
    match used_by {
        Use::Add | Use::Div | Use::Mul => is_float,
        Use::MulMat | Use::MulMatId => !matches!(tensor.ty, Type::TQ1_0 | Type::TQ2_0),
        Use::SsmConv => tensor.ne[1] % 128 == 0,
        Use::SsmScan => runs_scan(model, tensor),
        Use::GetRows => gets_rows(tensor.ty, tensor.ne[0]),
        Use::Im2col | Use::Rope | Use::Scale | Use::Wkv6 | Use::Unused => true,
    }
}

/// The shapes that the scan's kernels are made for, Mamba 2 (one decay a head) and Mamba 1.
fn runs_scan(model: &Model, tensor: &ModelTensor) -> bool {
    let Some(ssm) = model.hparams.ssm else {
        return true;
    };
    let (decay, n_head) = (tensor.ne[0], tensor.ne[1].max(1));
    let head_dim = ssm.d_inner / n_head;
    if decay == 1 {
        (ssm.d_state == 128 || ssm.d_state == 256) && head_dim % 16 == 0
    } else {
        decay == 16 && head_dim == 1 && n_head % 128 == 0 && ssm.n_group <= 1
    }
}
