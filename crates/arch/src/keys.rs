//! Reads an architecture's keys: a number or one a layer, integers or booleans, 0 as good as absent.

use crate::{Error, Result};
use vramfit_gguf::{Header, Value};

/// Constants that llama.cpp looks up for some architectures only (`Architecture::constants`): in other files they
/// do nothing.
const READ_BY_SOME: [&str; 5] = [
    "embedding_scale",
    "expert_weights_scale",
    "final_logit_softcapping",
    "logit_scale",
    "residual_scale",
];

/// The keys of one architecture: `get("block_count")` reads `llama.block_count`.
pub struct Keys<'a> {
    header: &'a Header,
    architecture: &'a str,
    constants: &'static [&'static str],
}

impl<'a> Keys<'a> {
    /// Keys that begin with `architecture` and a dot; `constants` are those it looks up of the ones that only some do.
    pub fn new(
        header: &'a Header,
        architecture: &'a str,
        constants: &'static [&'static str],
    ) -> Keys<'a> {
        Keys {
            header,
            architecture,
            constants,
        }
    }

    fn full(&self, key: &str) -> String {
        format!("{}.{key}", self.architecture)
    }

    fn value(&self, key: &str) -> Option<Value<'a>> {
        self.header.get(&self.full(key))
    }

    fn wrong_type(&self, key: &str, expected: &'static str, value: &Value<'_>) -> Error {
        Error::KeyType {
            key: self.full(key),
            expected,
            found: value.type_name().to_string(),
        }
    }

    fn in_range(&self, key: &str, value: &Value<'_>, max: i64) -> Result<i64> {
        let number = value.as_i64().or_else(|| value.as_bool().map(i64::from));
        let Some(n) = number else {
            return Err(self.wrong_type(key, "an integer", value));
        };
        if !(0..=max).contains(&n) {
            return Err(Error::KeyRange {
                key: self.full(key),
                value: n,
                min: 0,
                max,
            });
        }
        Ok(n)
    }

    /// An integer from 0 to `max`; of an array the first value. `None` when absent.
    pub fn int(&self, key: &str, max: i64) -> Result<Option<i64>> {
        match self.value(key) {
            None => Ok(None),
            Some(Value::Array(a)) => a
                .iter()
                .next()
                .map(|v| self.in_range(key, &v, max))
                .transpose(),
            Some(v) => self.in_range(key, &v, max).map(Some),
        }
    }

    /// Of a key that has to be there.
    pub fn missing(&self, key: &str) -> Error {
        Error::MissingKey {
            key: self.full(key),
        }
    }

    /// [`int`](Self::int), where 0 means the same as absent.
    pub fn positive(&self, key: &str, max: i64) -> Result<Option<i64>> {
        Ok(self.int(key, max)?.filter(|&n| n > 0))
    }

    /// A positive integer that must be there.
    pub fn require(&self, key: &str, max: i64) -> Result<i64> {
        let n = self.int(key, max)?.ok_or_else(|| self.missing(key))?;
        if n == 0 {
            return Err(Error::KeyRange {
                key: self.full(key),
                value: 0,
                min: 1,
                max,
            });
        }
        Ok(n)
    }

    /// One integer a layer, from an array of at least `n` or from one number for all.
    pub fn per_layer(&self, key: &str, n: usize, max: i64) -> Result<Option<Vec<i64>>> {
        match self.value(key) {
            None => Ok(None),
            Some(Value::Array(a)) => {
                if a.len() < n {
                    let key = self.full(key);
                    return Err(Error::KeyLength {
                        key,
                        found: a.len(),
                        needed: n,
                    });
                }
                a.iter()
                    .take(n)
                    .map(|v| self.in_range(key, &v, max))
                    .collect::<Result<_>>()
                    .map(Some)
            }
            Some(v) => Ok(Some(vec![self.in_range(key, &v, max)?; n])),
        }
    }

    /// The first `n` integers or booleans of an array, `rest` behind its end; `None` where the key is
    /// no array.
    pub fn array(&self, key: &str, n: usize, rest: i64) -> Result<Option<Vec<i64>>> {
        let Some(Value::Array(a)) = self.value(key) else {
            return Ok(None);
        };
        let number = |v: Value<'_>| {
            v.as_i64()
                .or_else(|| v.as_bool().map(i64::from))
                .ok_or_else(|| self.wrong_type(key, "an integer", &v))
        };
        let mut values: Vec<i64> = a.iter().take(n).map(number).collect::<Result<_>>()?;
        values.resize(n, rest);
        Ok(Some(values))
    }

    /// A float (or integer); `None` when absent.
    pub fn float(&self, key: &str) -> Result<Option<f64>> {
        let Some(value) = self.value(key).filter(|_| self.reads(key)) else {
            return Ok(None);
        };
        let number = value.as_f64().or_else(|| value.as_i64().map(|i| i as f64));
        number
            .map(Some)
            .ok_or_else(|| self.wrong_type(key, "a float", &value))
    }

    /// One float a layer, from an array or one for all; 0 where there is none.
    pub fn floats(&self, key: &str, n: usize) -> Result<Vec<f64>> {
        let Some(Value::Array(a)) = self.value(key) else {
            return Ok(vec![self.float(key)?.unwrap_or(0.0); n]);
        };
        let number = |v: Value<'_>| {
            v.as_f64()
                .ok_or_else(|| self.wrong_type(key, "a float", &v))
        };
        let mut floats: Vec<f64> = a.iter().take(n).map(number).collect::<Result<_>>()?;
        floats.resize(n, 0.0);
        Ok(floats)
    }

    fn reads(&self, key: &str) -> bool {
        !READ_BY_SOME.contains(&key) || self.constants.contains(&key)
    }

    /// Whether a float is there and not 0.
    pub fn is_set(&self, key: &str) -> Result<bool> {
        Ok(self.float(key)?.is_some_and(|x| x != 0.0))
    }

    /// A boolean (or integer); `None` when absent.
    pub fn flag(&self, key: &str) -> Result<Option<bool>> {
        Ok(self.int(key, i64::MAX)?.map(|n| n != 0))
    }

    /// A text; `None` when absent.
    pub fn text(&self, key: &str) -> Result<Option<&'a str>> {
        let Some(value) = self.value(key) else {
            return Ok(None);
        };
        let text = value.as_str().map(Some);
        text.ok_or_else(|| self.wrong_type(key, "a string", &value))
    }

    /// One boolean (or integer) a layer; the array may be shorter. `None` for anything else.
    pub fn flags(&self, key: &str, n: usize) -> Result<Option<Vec<bool>>> {
        let Some(Value::Array(a)) = self.value(key) else {
            return Ok(None);
        };
        let flag = |v: Value<'_>| Ok(self.in_range(key, &v, i64::MAX)? != 0);
        let mut flags: Vec<bool> = a.iter().take(n).map(flag).collect::<Result<_>>()?;
        flags.resize(n, false);
        Ok(Some(flags))
    }

    /// Entries of an array.
    pub fn array_len(&self, key: &str) -> Option<usize> {
        match self.value(key) {
            Some(Value::Array(a)) => Some(a.len()),
            _ => None,
        }
    }

    /// Whether the value is an array.
    pub fn is_array(&self, key: &str) -> bool {
        matches!(self.value(key), Some(Value::Array(_)))
    }

    /// Whether the file has this tensor.
    pub fn has_tensor(&self, name: &str) -> bool {
        self.header.tensor(name).is_some()
    }

    /// Entries of the token list.
    pub fn n_tokens(&self) -> Option<usize> {
        match self.header.get("tokenizer.ggml.tokens") {
            Some(Value::Array(a)) => Some(a.len()),
            _ => None,
        }
    }
}
