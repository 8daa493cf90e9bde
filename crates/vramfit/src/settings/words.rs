//! The words and numbers of settings.

use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{Error as _, Unexpected, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use vramfit_arch::Pooling;
use vramfit_estimate::{CACHE_TYPES, FlashAttention};
use vramfit_ggml::Type;

/// `-fa`: `"on"`, `"off"`, `"auto"`; true and false are read, too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct FlashWord(pub FlashAttention);

/// `-ngl`: a number, `"all"` or `"auto"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GpuLayers {
    /// So many; above the model's layers all.
    Layers(u32),
    /// All of them.
    All,
    /// As many as is best.
    Auto,
}

/// An element type that K and V caches can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheType(Type);

/// A GPU among those given: `"CUDA0"` is the first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GpuId(pub usize);

/// How embeddings are pooled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "llama.cpp's own words")]
pub enum PoolingWord {
    None,
    Mean,
    Cls,
    Last,
    Rank,
}

impl From<PoolingWord> for Pooling {
    fn from(word: PoolingWord) -> Pooling {
        match word {
            PoolingWord::None => Pooling::None,
            PoolingWord::Mean => Pooling::Mean,
            PoolingWord::Cls => Pooling::Cls,
            PoolingWord::Last => Pooling::Last,
            PoolingWord::Rank => Pooling::Rank,
        }
    }
}

impl CacheType {
    /// `None` for a type that llama.cpp's tools do not take for a cache.
    pub fn new(ty: Type) -> Option<CacheType> {
        CACHE_TYPES.contains(&ty).then_some(CacheType(ty))
    }

    /// The type.
    pub fn get(self) -> Type {
        self.0
    }
}

impl FlashWord {
    fn word(self) -> &'static str {
        match self.0 {
            FlashAttention::On => "on",
            FlashAttention::Off => "off",
            FlashAttention::Auto => "auto",
        }
    }
}

/// Reads a word, and what else a key may be.
struct Words<T> {
    expected: &'static str,
    text: fn(&str) -> Option<T>,
    number: fn(u64) -> Option<T>,
    truth: fn(bool) -> Option<T>,
}

impl<T> Words<T> {
    fn of(expected: &'static str, text: fn(&str) -> Option<T>) -> Words<T> {
        Words {
            expected,
            text,
            number: |_| None,
            truth: |_| None,
        }
    }
}

impl<T> Visitor<'_> for Words<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.expected)
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<T, E> {
        (self.text)(text).ok_or_else(|| E::invalid_value(Unexpected::Str(text), &self))
    }

    fn visit_u64<E: serde::de::Error>(self, n: u64) -> Result<T, E> {
        (self.number)(n).ok_or_else(|| E::invalid_type(Unexpected::Unsigned(n), &self))
    }

    fn visit_i64<E: serde::de::Error>(self, n: i64) -> Result<T, E> {
        let unsigned = u64::try_from(n).ok().and_then(self.number);
        unsigned.ok_or_else(|| E::invalid_value(Unexpected::Signed(n), &self))
    }

    fn visit_bool<E: serde::de::Error>(self, b: bool) -> Result<T, E> {
        (self.truth)(b).ok_or_else(|| E::invalid_type(Unexpected::Bool(b), &self))
    }
}

impl<'de> Deserialize<'de> for FlashWord {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let word = |text: &str| match text {
            "on" => Some(FlashWord(FlashAttention::On)),
            "off" => Some(FlashWord(FlashAttention::Off)),
            "auto" => Some(FlashWord(FlashAttention::Auto)),
            _ => None,
        };
        let truth = |on: bool| {
            Some(FlashWord(match on {
                true => FlashAttention::On,
                false => FlashAttention::Off,
            }))
        };
        from.deserialize_any(Words {
            truth,
            ..Words::of("on, off or auto", word)
        })
    }
}

impl<'de> Deserialize<'de> for GpuLayers {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let word = |text: &str| match text {
            "all" => Some(GpuLayers::All),
            "auto" => Some(GpuLayers::Auto),
            _ => None,
        };
        from.deserialize_any(Words {
            number: |n| Some(u32::try_from(n).map_or(GpuLayers::All, GpuLayers::Layers)),
            ..Words::of("a number of layers, all or auto", word)
        })
    }
}

impl<'de> Deserialize<'de> for CacheType {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        let found = Type::from_name(&text).and_then(CacheType::new);
        found.ok_or_else(|| {
            let names = CACHE_TYPES.map(Type::name).join(", ");
            D::Error::custom(format!(
                "no cache can be of type '{text}'; there are {names}"
            ))
        })
    }
}

impl<'de> Deserialize<'de> for GpuId {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let word = |text: &str| {
            let digits = text.strip_prefix("CUDA")?;
            let index: usize = digits.parse().ok()?;
            (index.to_string() == digits).then_some(GpuId(index))
        };
        from.deserialize_str(Words::of("a GPU such as CUDA0", word))
    }
}

impl Serialize for FlashWord {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(self.word())
    }
}

impl Serialize for GpuLayers {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        match self {
            GpuLayers::Layers(n) => to.serialize_u32(*n),
            GpuLayers::All => to.serialize_str("all"),
            GpuLayers::Auto => to.serialize_str("auto"),
        }
    }
}

impl Serialize for CacheType {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(self.0.name())
    }
}

impl Serialize for GpuId {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(&format_args!("CUDA{}", self.0))
    }
}

macro_rules! json_schema_of {
    ($type:ident, $description:literal, $schema:expr) => {
        impl JsonSchema for $type {
            fn schema_name() -> std::borrow::Cow<'static, str> {
                stringify!($type).into()
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                let mut schema: Schema = $schema;
                schema.insert("description".to_string(), $description.into());
                schema
            }
        }
    };
}

json_schema_of!(
    FlashWord,
    "Flash attention (`-fa`).",
    json_schema!({ "enum": ["on", "off", "auto", true, false] })
);
json_schema_of!(
    GpuLayers,
    "Layers on GPUs (`-ngl`).",
    json_schema!({ "oneOf": [{ "type": "integer", "minimum": 0 }, { "enum": ["all", "auto"] }] })
);
json_schema_of!(
    CacheType,
    "Element type of a cache.",
    json_schema!({ "type": "string", "enum": CACHE_TYPES.map(Type::name) })
);
json_schema_of!(
    GpuId,
    "A GPU among those given: CUDA0 is the first.",
    json_schema!({ "type": "string", "pattern": "^CUDA(0|[1-9][0-9]*)$" })
);
