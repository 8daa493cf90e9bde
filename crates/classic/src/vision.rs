//! A vision tower inside the model's file, as Ollama's own models have it.

use vramfit_gguf::Header;

use crate::facts::Keys;
use crate::number::N;

/// What a tower takes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Vision {
    /// Its tensors (`v.*`), bytes. The projection behind it (`mm.*`) is not counted.
    pub weights_bytes: u64,
    /// Its graph, bytes.
    pub graph_bytes: u64,
}

impl Vision {
    pub(crate) fn read(header: &Header, keys: &Keys) -> Vision {
        if keys.number("vision.block_count", 0) == 0 {
            return Vision::default();
        }
        let tensors = header.tensors().iter();
        let tower = tensors.filter(|t| t.name.starts_with("v."));
        Vision {
            weights_bytes: tower.fold(0, |sum, t| sum.saturating_add(t.n_bytes)),
            graph_bytes: graph(header, keys).0,
        }
    }

    /// Both.
    pub fn sum(&self) -> u64 {
        self.weights_bytes.saturating_add(self.graph_bytes)
    }
}

/// The image, its patches, and their attention to each other.
fn graph(header: &Header, keys: &Keys) -> N {
    let number = |key: &str, default| N(keys.number(&format!("vision.{key}"), default));
    let (size, patch) = (number("image_size", 0), number("patch_size", 0));
    let (channels, heads) = (number("num_channels", 0), number("attention.head_count", 0));
    let embedding = number("embedding_length", 0);
    if patch == N(0) {
        return N(0);
    }
    let side = size / patch;
    let class = header.tensors().iter().any(|t| t.name == "v.class_embd");
    let n = side * side + u64::from(class);
    match keys.architecture() {
        "gemma3" | "mistral3" => 4 * (size * size * channels + embedding * patch + n * n * heads),
        "mllama" => {
            let tiles = number("max_num_tiles", 0);
            // 8 more, less a rest that is always 0 to 7: kept as it is there.
            let padded = N((n + 8).0.saturating_sub(n.0 % 8));
            let seen = padded * tiles;
            4 * (8
                + size * size * channels * tiles
                + embedding * n * tiles
                + 9 * embedding * padded * tiles
                + seen * seen * heads)
        }
        "qwen25vl" => {
            let pixels = number("max_pixels", 28 * 28 * 1280);
            let n = pixels / (patch * patch);
            4 * (2 * pixels * channels
                + n * channels * patch * patch
                + n * n * heads
                + embedding * n)
        }
        _ => N(0),
    }
}
