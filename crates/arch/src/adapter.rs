//! LoRA adapters and control vectors (`llama-adapter.cpp`): what a context carries beside the model.

use crate::model::Model;
use crate::{Error, Result};
use std::collections::BTreeMap;
use std::sync::Arc;
use vramfit_ggml::Type;
use vramfit_gguf::{Header, TensorInfo};

/// A tensor of an adapter.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LoraTensor {
    /// Element type.
    pub ty: Type,
    /// Elements.
    pub ne: [i64; 4],
    /// Bytes of its data.
    pub n_bytes: u64,
}

impl LoraTensor {
    fn of(info: &TensorInfo) -> LoraTensor {
        LoraTensor {
            ty: info.ty,
            ne: info.ne,
            n_bytes: info.n_bytes,
        }
    }
}

/// A low-rank adapter: for each matrix W that it adapts, A `[n_in, rank]` and B `[rank, n_out]`, so that
/// `W x` becomes `W x + s B A x`.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Lora {
    /// A and B, by the index of W in [`Model::tensors`].
    pub pairs: BTreeMap<usize, [LoraTensor; 2]>,
    /// It takes part in the graph; one with a scale of 0 is only kept.
    pub is_applied: bool,
}

impl Lora {
    /// Reads an adapter's header. It has to be one of `model`, with both halves of each pair, in shapes that fit.
    pub fn load(header: &Header, model: &Model) -> Result<Lora> {
        let text = |key: &str| header.get(key).and_then(|v| v.as_str().map(str::to_string));
        for (key, expected) in [
            ("general.type", "adapter"),
            ("general.architecture", model.architecture_name.as_str()),
            ("adapter.type", "lora"),
        ] {
            let found = text(key).unwrap_or_default();
            if found != expected {
                return Err(Error::AdapterKey {
                    key,
                    expected: expected.to_string(),
                    found,
                });
            }
        }
        let loaded = model.tensors.iter().enumerate();
        let loaded = loaded.filter(|(i, _)| model.is_loaded(*i));
        let indices: BTreeMap<&str, usize> = loaded.map(|(i, t)| (t.name.as_str(), i)).collect();
        let mut halves: BTreeMap<usize, [Option<LoraTensor>; 2]> = BTreeMap::new();
        for info in header.tensors() {
            let name = info.name.as_str();
            let half = [".lora_a", ".lora_b"]
                .into_iter()
                .position(|end| name.ends_with(end));
            let Some(half) = half else {
                if name.ends_with("_norm.weight") {
                    continue; // llama.cpp passes over them
                }
                return Err(adapter_tensor(name, "is neither the A nor the B of a pair"));
            };
            let Some(&index) = indices.get(&name[..name.len() - ".lora_a".len()]) else {
                return Err(adapter_tensor(
                    name,
                    "adapts a tensor that the model does not have",
                ));
            };
            halves.entry(index).or_default()[half] = Some(LoraTensor::of(info));
        }
        let pair = |(index, [a, b]): (usize, [Option<LoraTensor>; 2])| {
            let target = &model.tensors[index];
            let (Some(a), Some(b)) = (a, b) else {
                return Err(adapter_tensor(
                    &target.name,
                    "has only one half of its pair",
                ));
            };
            let [n_in, n_out] = [target.ne[0], target.ne[1]];
            let fits = if target.name == "token_embd.weight" {
                n_in == b.ne[1] && n_out == a.ne[1]
            } else {
                n_in == a.ne[0] && n_out == b.ne[1] && a.ne[1] == b.ne[0]
            };
            match fits {
                true => Ok((index, [a, b])),
                false => Err(adapter_tensor(
                    &target.name,
                    "has another shape in the model",
                )),
            }
        };
        let pairs = halves.into_iter().map(pair).collect::<Result<_>>()?;
        Ok(Lora {
            pairs,
            is_applied: true,
        })
    }

    /// `get_n_nodes`: by how much a graph may be larger with it.
    pub fn n_nodes(&self) -> u64 {
        6 * self.pairs.len() as u64
    }
}

fn adapter_tensor(name: &str, what: &'static str) -> Error {
    Error::AdapterTensor {
        name: name.to_string(),
        what,
    }
}

/// The layers that a control vector is for, from its header: tensors `direction.N` of `n_embd` floats.
pub fn control_vector(header: &Header, model: &Model) -> Result<[usize; 2]> {
    let n_embd = model.hparams.n_embd;
    for info in header.tensors() {
        let layer = info
            .name
            .strip_prefix("direction.")
            .and_then(|n| n.parse::<u32>().ok());
        if layer.is_none_or(|n| n == 0) {
            return Err(adapter_tensor(
                &info.name,
                "is no direction of a layer from 1 up",
            ));
        }
        if info.ty != Type::F32 || info.ne != [n_embd, 1, 1, 1] {
            return Err(adapter_tensor(
                &info.name,
                "is not as wide as the model, in f32",
            ));
        }
    }
    if header.tensors().is_empty() {
        return Err(adapter_tensor(
            "direction.1",
            "is missing, and every other direction with it: this is no control vector",
        ));
    }
    Ok([1, model.hparams.n_layer()])
}

/// What a context carries beside the model.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Adapters {
    /// Low-rank adapters, all applied.
    pub loras: Arc<[Lora]>,
    /// The first and the last layer that a control vector is added behind; it is kept for every layer but the
    /// first.
    pub control_vector: Option<[usize; 2]>,
}

impl Adapters {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.loras.is_empty() && self.control_vector.is_none()
    }

    /// Whether the control vector is added behind layer `il`.
    pub fn controls(&self, il: usize) -> bool {
        self.control_vector
            .is_some_and(|[first, last]| il > 0 && (first..=last).contains(&il))
    }
}
