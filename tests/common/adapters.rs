//! Adapters made by a short rule, the same for the engine and for us: `rank=16,type=f16,targets=attn,every=2`.

use vramfit_arch::{Lora, Model};
use vramfit_ggml::Type;
use vramfit_gguf::{Header, Writer};

/// What an adapter adapts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Targets {
    /// The matrices of attention.
    Attention,
    /// All matrices of the layers, experts, convolutions and what llama.cpp multiplies without asking adapters too.
    Layers,
    /// Those, the token embedding and the output matrix.
    All,
}

/// How an adapter is made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Rule {
    /// Rows of A.
    pub rank: i64,
    /// Type of A and B.
    pub ty: Type,
    /// Which matrices.
    pub targets: Targets,
    /// Of every layer, of each second one, ..
    pub every: usize,
}

const TARGETS: [(&str, Targets); 3] = [
    ("attn", Targets::Attention),
    ("layers", Targets::Layers),
    ("all", Targets::All),
];

impl std::fmt::Display for Rule {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let named = TARGETS.iter().find(|(_, targets)| *targets == self.targets);
        let (rank, ty, targets) = (self.rank, self.ty.name(), named.unwrap().0);
        write!(f, "rank={rank},type={ty},targets={targets}")?;
        match self.every {
            1 => Ok(()),
            n => write!(f, ",every={n}"),
        }
    }
}

impl Rule {
    /// Reads a rule; nothing for other text, such as a path.
    pub fn read(text: &str) -> Option<Rule> {
        let mut rule = Rule {
            rank: 0,
            ty: Type::F16,
            targets: Targets::Attention,
            every: 1,
        };
        for pair in text.split(',') {
            let (name, value) = pair.split_once('=')?;
            match name {
                "rank" => rule.rank = value.parse().ok()?,
                "type" => rule.ty = Type::from_name(value)?,
                "targets" => rule.targets = TARGETS.iter().find(|(n, _)| *n == value)?.1,
                "every" => rule.every = value.parse().ok().filter(|&n| n > 0)?,
                _ => return None,
            }
        }
        (rule.rank > 0).then_some(rule)
    }

    /// The header of such an adapter of `model`.
    pub fn header(&self, model: &Model) -> Vec<u8> {
        let mut writer = Writer::new();
        let architecture = model.architecture_name.as_str();
        writer.key("general.type", "adapter").unwrap();
        writer.key("general.architecture", architecture).unwrap();
        writer.key("adapter.type", "lora").unwrap();
        writer.key("adapter.lora.alpha", 16.0f32).unwrap();
        let has_output = model.tensors.iter().any(|t| t.name == "output.weight");
        for (i, t) in model.tensors.iter().enumerate() {
            if !model.is_loaded(i) || t.ne[1] < 2 || !self.adapts(&t.name, has_output) {
                continue;
            }
            let [n_in, n_out, n_2, n_3] = t.ne;
            let (a, b) = if t.name == "token_embd.weight" {
                ([self.rank, n_out], [self.rank, n_in])
            } else {
                ([n_in, self.rank], [self.rank, n_out])
            };
            for (end, [x, y]) in [("a", a), ("b", b)] {
                writer.tensor(
                    &format!("{}.lora_{end}", t.name),
                    self.ty,
                    &[x, y, n_2, n_3],
                );
            }
        }
        writer.finish().unwrap()
    }

    fn adapts(&self, name: &str, has_output: bool) -> bool {
        let Some(rest) = name.strip_prefix("blk.") else {
            // Tied to the output matrix the embedding cannot be adapted: B A x would not fit there.
            let embedding = name == "token_embd.weight" && has_output;
            return self.targets == Targets::All && (embedding || name == "output.weight");
        };
        let (layer, kind) = rest.split_once('.').unwrap_or((rest, ""));
        let layer: usize = layer.parse().unwrap_or(0);
        layer.is_multiple_of(self.every)
            && kind.ends_with(".weight")
            && !kind.contains("norm")
            && (self.targets != Targets::Attention || kind.starts_with("attn_"))
    }

    /// The same, read by vramfit.
    pub fn lora(&self, model: &Model) -> Result<Lora, String> {
        let header = Header::parse(self.header(model)).map_err(|e| e.to_string())?;
        Lora::load(&header, model).map_err(|e| e.to_string())
    }
}
