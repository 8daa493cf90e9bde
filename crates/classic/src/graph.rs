//! The compute graph's size by formula: when everything is on GPUs, and when a part is.

use std::cmp::max;

use crate::Facts;
use crate::cache::{self, Load};
use crate::number::N;

const MIB: u64 = 1 << 20;

/// Sizes of the graph on one GPU, bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Graphs {
    /// When everything is offloaded, F.
    pub full: u64,
    /// When a part is, T.
    pub partial: u64,
}

/// The letters of the formulas.
struct Letters {
    /// Batch.
    b: N,
    /// Context of all requests.
    c: N,
    /// Embedding length.
    e: N,
    /// Query heads.
    h: N,
    /// Key/value heads.
    k: N,
    /// Length of a key head.
    dk: N,
    /// Vocabulary.
    v: N,
}

impl Letters {
    /// Logits and embeddings of a batch.
    fn logits(&self) -> N {
        4 * self.b * (self.e + self.v)
    }

    /// The output matrix at 6.5625 bits a weight, as Q6_K has it.
    fn output(&self) -> N {
        self.e * self.v * 105 / 128
    }
}

/// Both sizes for `model`.
pub fn graphs(model: &Facts, load: &Load) -> Graphs {
    let letters = Letters {
        b: N(load.batch),
        c: N(load.context),
        e: N(model.embedding),
        h: N(model.head_count[0]),
        k: N(model.head_count_kv[0]),
        dk: N(model.key_length),
        v: N(model.vocab),
    };
    let [full, partial] = formula(model, load, &letters);
    let partial = match partial {
        // Nothing is known of it: a share of its cache.
        N(0) => {
            let sum = cache::cache(model, load)
                .into_iter()
                .map(N)
                .fold(N(0), |a, b| a + b);
            letters.h / max(model.head_count_kv[1], 1) * sum / 6
        }
        partial => partial,
    };
    Graphs {
        full: if full == N(0) { partial } else { full }.0,
        partial: partial.0,
    }
}

/// Full and partial; 0 where there is no formula.
fn formula(model: &Facts, load: &Load, letters: &Letters) -> [N; 2] {
    let &Letters {
        b,
        c,
        e,
        h,
        k,
        dk,
        v,
    } = letters;
    let (logits, output) = (letters.logits(), letters.output());
    match model.architecture.as_str() {
        "llama" | "llama4" => llama(model, letters),
        "mllama" => [
            max(4 * b * (2 + 3 * e + dk * h + c * (1 + h)), logits),
            max(
                4 * (b * (2 * e + 1 + c * (1 + h) + dk * h) + dk * c * k),
                logits + output,
            ),
        ],
        "gemma" | "gemma2" | "gemma3" | "gemma3n" => {
            let attention = 2 * e + 2 * dk * h + c + c * h;
            // The alternating sizes of Gemma 3n's embeddings are a factor here.
            let times = if model.architecture == "gemma3n" {
                4
            } else {
                1
            };
            let partial = 4 * b * (1 + attention) + 32 * dk * c + e * dk * h * 9 / 16;
            [
                times * max(logits, 4 * b * (2 + attention)),
                times * max(logits + output, partial),
            ]
        }
        "command-r" => [
            max(logits, 4 * b * (2 + 4 * e + c * (1 + h))),
            max(
                logits + output,
                4 * b * (1 + 2 * e + c * (1 + h)) + 4 * e * c + e * e * 9 / 16,
            ),
        ],
        "qwen2" => [
            max(logits, 4 * b * (1 + 2 * e + c + c * h)),
            max(
                logits + output,
                4 * (b * (1 + 2 * e + c * (1 + h)) + e * (1 + c)),
            ),
        ],
        "phi2" => [
            max(logits, 4 * b * (1 + 4 * e + c + c * h)),
            max(
                4 * b * (2 * e + v) + output,
                4 * b * (2 + 3 * e + c + c * h),
            ),
        ],
        "stablelm" => {
            let full = 4 * b * (c * (1 + h) + 3 * e + 2);
            [full, max(4 * b * (v + 2 * e), full)]
        }
        "deepseek2" => [
            4 * b * max(3 * e + v, 3 * e + 2 + c * (1 + k) + 2 * dk * k),
            max(
                4 * b * (3 * e + v) + output,
                4 * b * (2 * e + 1 + 2 * dk * k + c + c * k) + 4 * dk * c * k + e * dk * k * 9 / 16,
            ),
        ],
        "chatglm" => {
            let Some(q) = model.qkv_bias else {
                return [logits, logits + output];
            };
            let attention = 2 * e + c + c * h + dk * h;
            [
                max(logits, 4 * b * (2 + attention + q)),
                max(
                    logits + output,
                    4 * b * (1 + attention) + 8 * dk * c + 4 * N(q),
                ),
            ]
        }
        "gptoss" | "gpt-oss" if load.flash_attention => [
            N(0),
            (4 * N(load.parallel) + (load.context >> 10) + 110) * MIB,
        ],
        "gptoss" | "gpt-oss" => {
            let sum = cache::plain(model, load)
                .into_iter()
                .map(N)
                .fold(N(0), |a, b| a + b);
            [N(0), 2 * h / max(model.head_count_kv[1], 1) * sum / 6]
        }
        _ => [N(0), N(0)],
    }
}

/// Llama, and the two ways in which Mixtral's experts have been stored.
fn llama(model: &Facts, letters: &Letters) -> [N; 2] {
    let &Letters { b, c, e, h, k, .. } = letters;
    let dh = e / model.head_count[1];
    let logits = letters.logits();
    if let Some(size) = model.gate_exps_bytes {
        let ff = N(model.feed_forward);
        return [
            max(4 * b * (1 + 4 * e + c * (1 + h)), logits),
            max(
                3 * N(size) + 4 * b * (2 * ff + k + e + c + dh * k),
                4 * (c * b * h + c * dh * k + b * 1024 + dh * k * b),
            ),
        ];
    }
    if let Some(g) = model.gate_rows.map(N) {
        return [
            4 * b * (2 + 3 * e + c * (1 + h) + 2 * k + g),
            max(
                4 * b * (3 + dh * k + e + c * (1 + h) + g) + (e * e + 3 * e * k * g) * 9 / 16,
                4 * b * (1 + 2 * e + c * (1 + h)) + e * (6 * c * k / h + e * 9 / 16),
            ),
        ];
    }
    let attention = 4 * b * (1 + e + max(c, e)) + e * e * 9 / 16 + 4 * c * (b * h + dh * k);
    [
        max(4 * b * (1 + 4 * e + c * (1 + h)), logits),
        4 * b * e + max(attention, logits + letters.output()),
    ]
}
