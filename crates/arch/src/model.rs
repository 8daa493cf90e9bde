//! A model: its architecture, its shape and its tensors, read once from the header.

use crate::adapter::{Adapters, Lora};
use crate::hparams::Hparams;
use crate::keys::Keys;
use crate::models::Architecture;
use crate::names::{Global, Kind, Name, Part, Use};
use crate::{Error, Result};
use vramfit_ggml::{Graph, Type};
use vramfit_gguf::Header;

/// A tensor of the model's file.
#[derive(Clone, Debug)]
pub struct ModelTensor {
    /// As the file names it.
    pub name: String,
    /// Which tensor that is.
    pub role: Name,
    /// Element type.
    pub ty: Type,
    /// Elements.
    pub ne: [i64; 4],
    /// Bytes of its data.
    pub n_bytes: u64,
    /// Where its data begins, bytes from the start of its file.
    pub offset: u64,
    /// File of a split model.
    pub part: u16,
}

const ABSENT: u32 = u32::MAX;
/// Names of `LLM_ARCH_NAMES` that `llama_model_create` has no model for.
const UNSUPPORTED: [&str; 1] = ["gptj"];
/// Tables above this may be left in the file and read row by row.
const LARGE_TABLE_BYTES: u64 = 4 << 30;

/// Tensors of one layer: kind and part, index. Sorted.
type LayerTable = Vec<(u16, u32)>;

const fn key(kind: Kind, part: Part) -> u16 {
    Part::COUNT as u16 * kind as u16 + part as u16
}

/// What a GGUF header says, understood.
#[derive(Clone, Debug)]
pub struct Model {
    /// `general.architecture`.
    pub architecture_name: String,
    /// What is known of it; [`Architecture::UNKNOWN`] if nothing is.
    pub architecture: &'static Architecture,
    /// `general.name`.
    pub name: Option<String>,
    /// Its shape.
    pub hparams: Hparams,
    /// Its tensors, in file order.
    pub tensors: Vec<ModelTensor>,
    /// Elements of all tensors.
    pub n_params: u64,
    /// Bytes of the complete file, or files.
    pub file_bytes: u64,
    /// The layers for multi-token prediction are loaded, too (`load_mtp`).
    pub loads_mtp: bool,
    layers: Vec<LayerTable>,
    /// Of an architecture that is not known: the tensors of each layer, whatever their names say.
    unknown_layers: Vec<Vec<u32>>,
    globals: [u32; Part::COUNT * Global::ALL.len()],
}

impl Model {
    /// Reads what the header says. All that llama.cpp needs must be there; see [`Error`].
    pub fn load(header: &Header) -> Result<Model> {
        let name = header.architecture().ok_or(Error::NoArchitecture)?;
        if UNSUPPORTED.contains(&name) {
            return Err(Error::UnsupportedArchitecture {
                name: name.to_string(),
            });
        }
        let architecture = Architecture::find(name).unwrap_or(Architecture::UNKNOWN);
        Model::load_as(header, name, architecture)
    }

    /// [`load`](Self::load) as if the architecture were not known: the way to test bounds.
    pub fn load_as_unknown(header: &Header) -> Result<Model> {
        let name = header.architecture().ok_or(Error::NoArchitecture)?;
        Model::load_as(header, name, Architecture::UNKNOWN)
    }

    fn load_as(header: &Header, name: &str, architecture: &'static Architecture) -> Result<Model> {
        if name == crate::clip::ARCHITECTURE {
            return Err(Error::ProjectorAsModel);
        }
        let keys = Keys::new(header, name, architecture.constants);
        let mut hparams = Hparams::load(&keys)?;
        (architecture.hparams)(&keys, &mut hparams)?;
        if architecture.graph.is_none() {
            // layers that keys may not count
            let layers = header
                .tensors()
                .iter()
                .filter_map(|t| Name::parse(&t.name).layer());
            hparams.extend_layers(layers.max().map_or(0, |il| il.saturating_add(1)));
        }
        let mut model = Model {
            architecture_name: name.to_string(),
            architecture,
            name: header
                .get("general.name")
                .and_then(|v| v.as_str())
                .map(str::to_string),
            layers: vec![LayerTable::new(); hparams.n_layer_all.max(hparams.n_layer())],
            unknown_layers: Vec::new(),
            globals: [ABSENT; Part::COUNT * Global::ALL.len()],
            hparams,
            tensors: Vec::with_capacity(header.tensors().len()),
            n_params: 0,
            file_bytes: header.file_bytes(),
            loads_mtp: false,
        };
        for info in header.tensors() {
            model.add(ModelTensor {
                name: info.name.clone(),
                role: Name::parse(&info.name),
                ty: info.ty,
                ne: info.ne,
                n_bytes: info.n_bytes,
                offset: info.offset,
                part: info.part,
            })?;
        }
        if !model.is_known() {
            model.sort_by_layer();
        }
        Ok(model)
    }

    fn sort_by_layer(&mut self) {
        self.unknown_layers = vec![Vec::new(); self.layers.len()];
        for (index, tensor) in self.tensors.iter().enumerate() {
            let layer = tensor.role.layer();
            if let Some(layer) = layer.and_then(|il| self.unknown_layers.get_mut(il)) {
                layer.push(index as u32);
            }
        }
    }

    /// Of an architecture that is not known: the tensors of layer `il`.
    pub fn unknown_layer(&self, il: usize) -> impl Iterator<Item = &ModelTensor> {
        let indices = self.unknown_layers.get(il).into_iter().flatten();
        indices.map(|&index| &self.tensors[index as usize])
    }

    fn add(&mut self, mut tensor: ModelTensor) -> Result<()> {
        let by_stream = match tensor.role {
            Name::Layer(_, kind, _) => matches!(
                kind,
                Kind::HcAttnNorm
                    | Kind::HcFfnNorm
                    | Kind::PleNormKey
                    | Kind::PleNormQuery
                    | Kind::PleNormConv
            ),
            Name::Global(global, _) => global == Global::OutputHcNorm,
            _ => false,
        };
        if by_stream && tensor.ne[0] == self.hparams.n_embd * self.hparams.n_streams {
            tensor.ne = [self.hparams.n_embd, self.hparams.n_streams, 1, 1];
        }
        if let (Name::Layer(_, Kind::AttnOutputA, _), Some(c)) =
            (tensor.role, self.hparams.compressor)
        {
            // a matrix a group: `TENSOR_ALLOW_RESHAPE`
            let [n, rows, ..] = tensor.ne;
            if tensor.ne[2] == 1 && rows % c.n_out_group == 0 {
                tensor.ne = [n, rows / c.n_out_group, c.n_out_group, 1];
            }
        }
        let index = self.tensors.len() as u32;
        match tensor.role {
            Name::Layer(il, kind, part) if il < self.layers.len() => {
                let (table, key) = (&mut self.layers[il], key(kind, part));
                match table.binary_search_by_key(&key, |&(k, _)| k) {
                    Ok(at) => table[at].1 = index,
                    Err(at) => table.insert(at, (key, index)),
                }
            }
            Name::Global(global, part) => {
                self.globals[Part::COUNT * global as usize + part as usize] = index;
            }
            Name::Other(_) if !self.is_known() => {}
            _ => {
                return Err(Error::UnexpectedTensor {
                    name: tensor.name,
                    architecture: self.architecture_name.clone(),
                });
            }
        }
        let n = tensor
            .ne
            .iter()
            .fold(1u64, |n, &x| n.saturating_mul(x.max(0) as u64));
        self.n_params = self.n_params.saturating_add(n);
        self.tensors.push(tensor);
        Ok(())
    }

    /// With its layers for multi-token prediction, as llama.cpp loads it for `--spec-type draft-mtp`.
    pub fn with_mtp(mut self) -> Model {
        self.loads_mtp = true;
        self
    }

    /// A draft without embeddings or an output matrix of its own: it reads those of its target.
    pub fn borrows_of_target(&self) -> bool {
        let lacks = |global| self.global_tensor(global, Part::Weight).is_none();
        let drafts = matches!(self.architecture.name, "eagle3" | "dflash");
        let lacks_some = lacks(Global::TokenEmbd) || lacks(Global::Output);
        (drafts && lacks_some) || self.architecture.name == "gemma4-assistant"
    }

    /// Its graph is known.
    pub fn is_known(&self) -> bool {
        self.architecture.graph.is_some()
    }

    /// Of an architecture that is not known: a tensor that names do not place for sure, so that it is counted
    /// wherever it may go.
    pub fn has_two_homes(&self, index: usize) -> bool {
        let role = self.tensors[index].role;
        let is_ambiguous = match role {
            Name::Layer(il, kind, _) => kind == Kind::SsmA || il >= self.hparams.n_layer(),
            Name::Global(global, _) => match global {
                Global::TokenEmbdNorm => true,
                Global::TokenEmbd => self.has_tied_output(),
                Global::Output => self.embeds_by_output(),
                Global::PerLayerTokenEmbd => self.tensors[index].n_bytes > LARGE_TABLE_BYTES,
                _ => false,
            },
            Name::Other(_) => true,
        };
        is_ambiguous && !self.is_known()
    }

    /// Index of a tensor of layer `il`.
    #[inline]
    pub fn layer_tensor(&self, il: usize, kind: Kind, part: Part) -> Option<usize> {
        let (table, key) = (self.layers.get(il)?, key(kind, part));
        let at = table.binary_search_by_key(&key, |&(k, _)| k).ok()?;
        Some(table[at].1 as usize)
    }

    /// Index of a tensor outside the layers.
    #[inline]
    pub fn global_tensor(&self, global: Global, part: Part) -> Option<usize> {
        let index = self.globals[Part::COUNT * global as usize + part as usize];
        (index != ABSENT).then_some(index as usize)
    }

    /// Whether layer `il` has the weight `kind`.
    pub fn has(&self, il: usize, kind: Kind) -> bool {
        self.layer_tensor(il, kind, Part::Weight).is_some()
    }

    /// Whether the output matrix is the token embedding used again.
    pub fn has_tied_output(&self) -> bool {
        let architecture = self.architecture;
        let reads_one = architecture.has_lm_head && !architecture.embd_is_output;
        reads_one && self.global_tensor(Global::Output, Part::Weight).is_none()
    }

    /// Whether tokens are looked up in a copy of the output matrix.
    pub fn embeds_by_output(&self) -> bool {
        let has_none = self
            .global_tensor(Global::TokenEmbd, Part::Weight)
            .is_none();
        self.architecture.output_embeds && has_none
    }

    /// Whether llama.cpp loads tensor `index` at all: those of the multi-token-prediction layers
    /// are left in the file, by and large.
    pub fn is_loaded(&self, index: usize) -> bool {
        match self.tensors[index].role {
            Name::Layer(il, kind, _) => {
                let of_main = il < self.hparams.n_layer_loaded()
                    || self.loads_mtp
                    || self.architecture.loads_mtp.contains(&kind)
                    || !self.is_known();
                of_main && kind.used_by() != Use::Unused
            }
            Name::Global(global, _) => global.used_by() != Use::Unused,
            Name::Other(_) => true,
        }
    }

    /// Whether `tensor` stays in the file, mapped by itself, and is read row by row
    /// (`TENSOR_READ_LAZY`): tables of more than 4 GiB.
    pub fn is_read_lazily(&self, tensor: &ModelTensor) -> bool {
        let is_table = matches!(tensor.role, Name::Global(Global::PerLayerTokenEmbd, _));
        self.architecture.reads_lazily && is_table && tensor.n_bytes > LARGE_TABLE_BYTES
    }

    /// `graph_max_nodes` and the table that is made of it: how many tensors a graph of
    /// `n_tokens` may have before llama.cpp aborts.
    pub fn max_graph_tensors(&self, n_tokens: i64, adapters: &Adapters) -> u64 {
        let n_tensors = self.tensors.len() as u64;
        let of_adapters = || adapters.loras.iter().map(Lora::n_nodes).sum::<u64>();
        let of_selector = self.hparams.selector.map(|_| (0, 12));
        let of_streams = self.hparams.compressor.map(|_| (40, 32)); // DSpark's stages
        let own = self.architecture.graph_room.or(of_streams);
        let wanted = match own.or(of_selector) {
            Some((per_token, per_tensor)) => (n_tokens.max(0) as u64)
                .saturating_mul(per_token)
                .max(per_tensor * n_tensors),
            None => (8 * n_tensors).max(1024) + of_adapters(),
        };
        hash_table_size(wanted)
    }

    /// Nodes and leafs of `graph`, against [`max_graph_tensors`](Self::max_graph_tensors).
    pub fn graph_tensors(graph: &Graph) -> u64 {
        (graph.nodes.len() + graph.leafs.len()) as u64
    }
}

/// `ggml_hash_size`: the first of ggml's primes that is not below `wanted`.
fn hash_table_size(wanted: u64) -> u64 {
    const PRIMES: [u64; 16] = [
        1031, 2053, 4099, 8209, 16411, 32771, 65537, 131_101, 262_147, 524_309, 1_048_583,
        2_097_169, 4_194_319, 8_388_617, 16_777_259, 33_554_467,
    ];
    PRIMES
        .into_iter()
        .find(|&p| p >= wanted)
        .unwrap_or(wanted | 1)
}
