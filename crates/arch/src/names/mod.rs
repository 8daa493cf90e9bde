//! Names of model tensors: `blk.12.attn_q.weight` becomes (12, [`Kind::AttnQ`], weight).

mod table;

pub use table::{Global, Kind};

/// The operation that llama.cpp's loader expects to read a tensor: a device has to support it, or the tensor
/// stays on the host.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Use {
    /// Added to something, as biases are.
    Add,
    /// Divides something.
    Div,
    /// Looked up by row.
    GetRows,
    /// A convolution, by image-to-column.
    Im2col,
    /// Multiplied element by element.
    Mul,
    /// A matrix.
    MulMat,
    /// One matrix an expert.
    MulMatId,
    /// Frequency factors.
    Rope,
    /// Attention sinks, which are tested as if they were scaled.
    Scale,
    /// A convolution over time.
    SsmConv,
    /// The decay of a scan.
    SsmScan,
    /// The first token's bonus of RWKV 6.
    Wkv6,
    /// Nothing: the loader leaves the tensor in the file.
    Unused,
}

/// Where a tensor outside the layers goes by itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Home {
    /// To the host, with the input layer.
    Input,
    /// To a repeating layer: the first, or each that reads it.
    Layer,
    /// To the output layer.
    Output,
}

/// The end of a tensor's name.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Part {
    /// `.weight`, or no suffix at all, as `ssm_a` has it.
    Weight = 0,
    /// `.bias`.
    Bias = 1,
    /// `.scale`: what a matrix's product is multiplied by.
    Scale = 2,
    /// `.input_scale`: kept beside the matrix, read by nothing.
    InputScale = 3,
    /// `.lora_a`: the first matrix of each adapter in the model.
    LoraA = 4,
    /// `.lora_b`: the second.
    LoraB = 5,
}

impl Part {
    /// The operation that reads this part of a tensor which `used` reads.
    pub(crate) fn used_by(self, used: Use) -> Use {
        match self {
            Part::LoraA | Part::LoraB => Use::MulMatId,
            _ => used,
        }
    }

    /// How many there are.
    pub const COUNT: usize = 6;
    const SUFFIXES: [(&'static str, Part); 7] = [
        (".weight", Part::Weight),
        (".bias", Part::Bias),
        (".scale", Part::Scale),
        (".input_scale", Part::InputScale),
        (".lora_a", Part::LoraA),
        (".lora_b", Part::LoraB),
        (".scales", Part::Weight), // of `ffn.act` (AWQ)
    ];

    fn split(name: &str) -> (&str, Part) {
        let stripped = |&(suffix, part)| Some((name.strip_suffix(suffix)?, part));
        Self::SUFFIXES
            .iter()
            .find_map(stripped)
            .unwrap_or((name, Part::Weight))
    }
}

/// Which tensor a name means.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Name {
    /// Of one layer.
    Layer(usize, Kind, Part),
    /// Outside the layers.
    Global(Global, Part),
    /// Of no known kind, in a layer or outside.
    Other(Option<usize>),
}

impl Name {
    /// The layer it belongs to.
    pub fn layer(self) -> Option<usize> {
        match self {
            Name::Layer(il, ..) => Some(il),
            Name::Other(layer) => layer,
            Name::Global(..) => None,
        }
    }

    /// Reads a tensor's name.
    pub fn parse(name: &str) -> Name {
        let of_layer = |rest: &str, stack: &str| {
            let (layer, rest) = rest.split_once('.')?;
            let (base, part) = Part::split(rest);
            let kind = match stack {
                "" => Kind::from_name(base),
                _ => Kind::from_name(&format!("{stack}{base}")),
            };
            Some(Name::Layer(layer.parse().ok()?, kind?, part))
        };
        if let Some(rest) = name.strip_prefix("blk.") {
            let layer = || rest.split_once('.')?.0.parse().ok();
            return of_layer(rest, "").unwrap_or_else(|| Name::Other(layer()));
        }
        let stacks = STACKS
            .iter()
            .find_map(|&(prefix, stack)| of_layer(name.strip_prefix(prefix)?, stack));
        stacks.unwrap_or_else(|| {
            let (base, part) = Part::split(name);
            Global::from_name(base).map_or(Name::Other(None), |g| Name::Global(g, part))
        })
    }
}

/// Stacks of layers beside `blk`: how their names begin in the file, and in [`Kind::name`].
const STACKS: [(&str, &str); 4] = [
    ("dec.blk.", "dec."),
    ("enc.blk.", "enc."),
    ("posnet.", "posnet."),
    ("convnext.", "convnext."),
];

impl Kind {
    /// The tensor's name in the file: `blk.3.attn_q.weight`.
    pub fn file_name(self, il: usize, part: Part) -> String {
        let suffix = Part::SUFFIXES[part as usize].0;
        let stack = STACKS
            .iter()
            .find_map(|&(prefix, stack)| Some((prefix, self.name().strip_prefix(stack)?)));
        let (prefix, base) = stack.unwrap_or(("blk.", self.name()));
        format!("{prefix}{il}.{base}{suffix}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_sorted() {
        let names = |all: &[Kind]| all.iter().map(|k| k.name()).collect::<Vec<_>>();
        assert!(names(Kind::ALL).is_sorted());
        assert!(Global::ALL.iter().map(|g| g.name()).is_sorted());
    }

    #[test]
    fn names_parse() {
        let layer = |i, k, p| Name::Layer(i, k, p);
        for (name, want) in [
            ("blk.12.attn_q.weight", layer(12, Kind::AttnQ, Part::Weight)),
            ("blk.0.ssm_a", layer(0, Kind::SsmA, Part::Weight)),
            (
                "blk.3.exp_probs_b.bias",
                layer(3, Kind::ExpProbsB, Part::Bias),
            ),
            (
                "blk.3.shortconv.conv.weight",
                layer(3, Kind::ShortConv, Part::Weight),
            ),
            (
                "blk.46.nextn.enorm.weight",
                layer(46, Kind::NextnEnorm, Part::Weight),
            ),
            (
                "blk.1.ffn_up.input_scale",
                layer(1, Kind::FfnUp, Part::InputScale),
            ),
            (
                "dec.blk.2.cross_attn_q.weight",
                layer(2, Kind::DecCrossAttnQ, Part::Weight),
            ),
            (
                "posnet.0.norm1.bias",
                layer(0, Kind::PosnetNorm1, Part::Bias),
            ),
            ("output.weight", Name::Global(Global::Output, Part::Weight)),
            (
                "enc.output_norm.weight",
                Name::Global(Global::EncOutputNorm, Part::Weight),
            ),
            ("blk.x.attn_q.weight", Name::Other(None)),
            ("blk.1.attn_q_of_tomorrow.weight", Name::Other(Some(1))),
            ("v.patch_embd.weight", Name::Other(None)),
        ] {
            assert_eq!(Name::parse(name), want, "{name}");
            if let Name::Layer(il, kind, part) = want
                && !name.ends_with("ssm_a")
            {
                assert_eq!(kind.file_name(il, part), name);
            }
        }
    }
}
