//! One thing that a mutant has otherwise than the spec it was made of.

use std::fmt;

use toml::Value as Toml;

use super::bases::written;
use crate::random::Random;
use crate::synth::{Spec, flat};

/// A change to a spec.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    Set(String, Toml),
    Remove(String),
    /// Layers; lists with a value a layer follow.
    Layers(i64),
    Matrices(&'static str),
    Type(String, &'static str),
    With(String),
    Without(String),
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Set(key, value) => write!(f, "{key} = {}", written(value)),
            Self::Remove(key) => write!(f, "no {key}"),
            Self::Layers(n) => write!(f, "{n} layers"),
            Self::Matrices(ty) => write!(f, "matrices in {ty}"),
            Self::Type(name, ty) => write!(f, "{name} in {ty}"),
            Self::With(name) => write!(f, "with {name}"),
            Self::Without(name) => write!(f, "without {name}"),
        }
    }
}

/// The spec with these changes, its keys in one table.
pub fn changed(spec: &Spec, changes: &[Change]) -> Spec {
    let mut spec = Spec {
        keys: flat(&spec.keys)
            .into_iter()
            .map(|(k, v)| (k, v.clone()))
            .collect(),
        ..spec.clone()
    };
    for change in changes {
        match change.clone() {
            Change::Set(key, value) => drop(spec.keys.insert(key, value)),
            Change::Remove(key) => drop(spec.keys.remove(&key)),
            Change::Layers(n) => set_layers(&mut spec.keys, n),
            Change::Matrices(ty) => {
                // Types that a real file states tensor by tensor would hide it.
                spec.types.retain(|_, given| given == "f32");
                spec.matrices = ty.to_owned();
            }
            Change::Type(name, ty) => drop(spec.types.insert(name, ty.to_owned())),
            Change::With(name) => {
                spec.without.retain(|other| *other != name);
                spec.with.push(name);
            }
            Change::Without(name) => {
                spec.with.retain(|other| *other != name);
                spec.without.push(name);
            }
        }
    }
    spec
}

fn set_layers(keys: &mut toml::Table, n: i64) {
    let old = keys
        .get("block_count")
        .and_then(Toml::as_integer)
        .unwrap_or(0);
    keys.insert("block_count".to_owned(), Toml::Integer(n));
    for (_, value) in keys.iter_mut() {
        let lists = value
            .as_array_mut()
            .filter(|list| list.len() as i64 == old && old > 0);
        if let Some(list) = lists {
            *list = list
                .iter()
                .cycle()
                .take(n.unsigned_abs() as usize)
                .cloned()
                .collect();
        }
    }
}

/// A few changes, most of them such as llama.cpp will load.
pub fn changes(random: &mut Random, spec: &Spec, tensors: &[String]) -> Vec<Change> {
    let mut list = Vec::new();
    let layers = integer(spec, "block_count").unwrap_or(1);
    if random.chance(75) {
        list.push(Change::Layers(match random.below(100) {
            0..75 => 1 + random.below(8) as i64,
            _ => 1 + random.below(layers.unsigned_abs() + 3) as i64,
        }));
    }
    for _ in 0..random.weighted(&[(1, 45), (2, 30), (3, 15), (5, 10)]) {
        one(random, spec, tensors, &mut list);
    }
    list
}

fn integer(spec: &Spec, key: &str) -> Option<i64> {
    flat(&spec.keys)
        .get(key)
        .and_then(|value| value.as_integer())
}

fn one(random: &mut Random, spec: &Spec, tensors: &[String], list: &mut Vec<Change>) {
    let mut set = |key: &str, value: Toml| list.push(Change::Set(key.to_owned(), value));
    match random.below(100) {
        0..18 => heads(random, spec, &mut set),
        18..26 => {
            let width = random.pick(&[
                256, 320, 512, 768, 896, 1024, 1152, 1280, 2048, 2304, 2560, 4096,
            ]);
            set("embedding_length", Toml::Integer(width));
        }
        26..32 => {
            let width = random.pick(&[256, 288, 512, 768, 1000, 1408, 2048, 4864, 8192, 11_008]);
            set("feed_forward_length", Toml::Integer(width));
        }
        32..40 => experts(random, &mut set),
        40..44 => {
            let n = random.pick(&[512, 1000, 32_000, 32_001, 50_257, 151_936, 262_144]);
            set("vocab_size", Toml::Integer(n));
        }
        44..52 => window(random, spec, &mut set),
        52..58 => rope(random, &mut set),
        58..66 => scale(random, list),
        66..78 => list.extend(tensor(random, spec, tensors)),
        78..86 => list.push(types(random, tensors)),
        _ => list.extend(any_key(random, spec)),
    }
}

fn heads(random: &mut Random, spec: &Spec, set: &mut impl FnMut(&str, Toml)) {
    let n = random.pick(&[1, 2, 3, 4, 6, 7, 8, 12, 14, 16, 20, 24, 32, 40, 48, 64, 71]);
    let divisors: Vec<i64> = (1..=n).filter(|d| n % d == 0).collect();
    let n_kv = divisors[random.below(divisors.len() as u64) as usize];
    let width = random.pick(&[32, 40, 48, 64, 72, 80, 96, 112, 128, 192, 256, 512, 576]);
    match random.below(4) {
        0 => set("attention.head_count_kv", Toml::Integer(n_kv)),
        1 => {
            set("attention.key_length", Toml::Integer(width));
            set("attention.value_length", Toml::Integer(width));
        }
        2 => set("attention.key_length", Toml::Integer(width)),
        _ => {
            set("attention.head_count", Toml::Integer(n));
            if flat(&spec.keys).contains_key("attention.head_count_kv") {
                set("attention.head_count_kv", Toml::Integer(n_kv));
            }
            set(
                "embedding_length",
                Toml::Integer(n * random.pick(&[32, 64, 128])),
            );
        }
    }
}

fn experts(random: &mut Random, set: &mut impl FnMut(&str, Toml)) {
    let n = random.pick(&[2, 4, 8, 16, 32, 60, 64, 128]);
    match random.below(4) {
        0 => set(
            "expert_used_count",
            Toml::Integer(1 + random.below(8) as i64),
        ),
        1 => set(
            "expert_gating_func",
            Toml::Integer(1 + random.below(3) as i64),
        ),
        2 => set("expert_shared_count", Toml::Integer(random.below(4) as i64)),
        _ => {
            set("expert_count", Toml::Integer(n));
            set(
                "expert_used_count",
                Toml::Integer(1 + random.below(n.unsigned_abs()) as i64),
            );
        }
    }
}

fn window(random: &mut Random, spec: &Spec, set: &mut impl FnMut(&str, Toml)) {
    let layers = integer(spec, "block_count").unwrap_or(1).clamp(1, 1000);
    match random.below(3) {
        0 => set(
            "attention.sliding_window",
            Toml::Integer(random.pick(&[1, 100, 128, 512, 1024, 4096, 8192])),
        ),
        1 => set(
            "attention.sliding_window_pattern",
            Toml::Integer(1 + random.below(7) as i64),
        ),
        _ => {
            let layers = (0..layers)
                .map(|_| Toml::Boolean(random.chance(50)))
                .collect();
            set("attention.sliding_window_pattern", Toml::Array(layers));
        }
    }
}

fn rope(random: &mut Random, set: &mut impl FnMut(&str, Toml)) {
    match random.below(4) {
        0 => set(
            "rope.dimension_count",
            Toml::Integer(random.pick(&[16, 32, 64, 80, 128])),
        ),
        1 => set("rope.freq_base", Toml::Float(1e6)),
        2 => set(
            "context_length",
            Toml::Integer(random.pick(&[512, 2048, 40_960, 131_072])),
        ),
        _ => {
            let kind = random.pick(&["none", "linear", "yarn", "longrope"]);
            set("rope.scaling.type", Toml::String(kind.to_owned()));
            set(
                "rope.scaling.factor",
                Toml::Float(random.pick(&[1.0, 4.0, 32.0])),
            );
            set(
                "rope.scaling.original_context_length",
                Toml::Integer(random.pick(&[2048, 4096])),
            );
        }
    }
}

/// Scales and caps, on or off.
fn scale(random: &mut Random, list: &mut Vec<Change>) {
    let key = random.pick(&[
        "attn_logit_softcapping",
        "final_logit_softcapping",
        "logit_scale",
        "embedding_scale",
        "residual_scale",
        "attention.scale",
        "expert_weights_scale",
        "attention.clamp_kqv",
        "attention.max_alibi_bias",
        "rope.scaling.attn_factor",
        "attention.temperature_scale",
    ]);
    let value = random.pick(&[0.0, 1.0, 0.5, 30.0]);
    list.push(if random.chance(30) {
        Change::Remove(key.to_owned())
    } else {
        Change::Set(key.to_owned(), Toml::Float(value))
    });
}

/// A tensor more, or one less: the engine refuses those that it cannot do without.
fn tensor(random: &mut Random, spec: &Spec, tensors: &[String]) -> Option<Change> {
    let any = |random: &mut Random, list: &[String]| {
        let at = random.below(list.len() as u64) as usize;
        list.get(at).cloned()
    };
    match random.below(100) {
        0..10 => {
            let more = random.pick(&[
                "attn_qkv",
                "ffn_gate_up_exps",
                "rope_freqs.weight",
                "*.scale",
            ]);
            Some(Change::With(more.to_owned()))
        }
        10..45 => any(random, &spec.without).map(Change::With),
        _ => any(random, tensors).map(Change::Without),
    }
}

fn types(random: &mut Random, tensors: &[String]) -> Change {
    const TYPES: [&str; 16] = [
        "f16", "bf16", "f32", "q4_0", "q8_0", "q5_1", "q2_K", "q3_K", "q4_K", "q5_K", "q6_K",
        "iq4_nl", "iq4_xs", "iq2_xxs", "iq3_s", "mxfp4",
    ];
    let ty = random.pick(&TYPES);
    let matrices: Vec<&String> = tensors
        .iter()
        .filter(|name| name.ends_with(".weight") && !name.contains("norm"))
        .collect();
    let at = random.below(matrices.len() as u64) as usize;
    match matrices.get(at) {
        Some(name) if random.chance(60) => Change::Type((*name).clone(), ty),
        _ => Change::Matrices(ty),
    }
}

/// Any key the spec has: another number, the other way round, or gone.
fn any_key(random: &mut Random, spec: &Spec) -> Option<Change> {
    let keys = flat(&spec.keys);
    let at = random.below(keys.len() as u64) as usize;
    let (key, value) = keys.iter().nth(at)?;
    if random.chance(15) {
        return Some(Change::Remove(key.clone()));
    }
    let value = match value {
        Toml::Array(list) => {
            let mut list = list.clone();
            let at = random.below(list.len() as u64) as usize;
            let new = another(random, list.get(at)?)?;
            *list.get_mut(at)? = new;
            Toml::Array(list)
        }
        value => another(random, value)?,
    };
    Some(Change::Set(key.clone(), value))
}

fn another(random: &mut Random, value: &Toml) -> Option<Toml> {
    Some(match value {
        Toml::Boolean(bool) => Toml::Boolean(!bool),
        Toml::Integer(n) => Toml::Integer(match random.below(5) {
            0 => n + 1,
            1 => (n - 1).max(0),
            2 => n / 2,
            3 => n.saturating_mul(2).min(1 << 20),
            _ => random.below(9) as i64,
        }),
        Toml::Float(x) => Toml::Float(random.pick(&[0.0, 1.0, x * 2.0])),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec() -> Spec {
        toml::from_str(
            "architecture = 'x'\nsource = ''\nmatrices = 'q4_K'\nwith = ['attn_qkv']\n\
             [keys]\nblock_count = 4\nattention.head_count = [8, 4, 8, 4]\nscale = 0.5",
        )
        .unwrap()
    }

    #[test]
    fn lists_follow_the_layers() {
        let six = changed(&spec(), &[Change::Layers(6)]);
        let heads: Vec<i64> = six.keys["attention.head_count"]
            .as_array()
            .unwrap()
            .iter()
            .filter_map(Toml::as_integer)
            .collect();
        assert_eq!(heads, [8, 4, 8, 4, 8, 4]);
        assert_eq!(six.keys["block_count"].as_integer(), Some(6));
    }

    #[test]
    fn the_last_word_on_a_tensor_counts() {
        let spec = changed(
            &spec(),
            &[
                Change::Without("attn_qkv".into()),
                Change::Remove("scale".into()),
            ],
        );
        assert!(spec.with.is_empty() && spec.without == ["attn_qkv"]);
        assert!(!spec.keys.contains_key("scale"));
    }

    #[test]
    fn changes_depend_on_the_seed_alone() {
        let list = |seed| {
            changes(
                &mut Random::new(seed, "x"),
                &spec(),
                &["attn_q.weight".into()],
            )
        };
        assert_eq!(list(1), list(1));
        assert!((0..200).all(|seed| !list(seed).is_empty() || list(seed) == list(seed)));
        assert!((0..50).any(|seed| list(seed) != list(seed + 1)));
    }
}
