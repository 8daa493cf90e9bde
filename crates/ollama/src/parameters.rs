//! What sets the defaults of a run: parameters of the Modelfile, and `OLLAMA_*` variables.

use std::ffi::OsString;

use serde_json::Value;

use crate::Error;

/// `PARAMETER` lines that take memory.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Parameters {
    /// Tokens of context of each request.
    pub num_ctx: Option<u64>,
    /// Layers on GPUs; negative for all that fit.
    pub num_gpu: Option<i64>,
    /// Tokens of a batch.
    pub num_batch: Option<u64>,
}

impl Parameters {
    /// From the JSON object of a params layer. The error says what is wrong with it.
    pub(crate) fn parse(text: &[u8]) -> Result<Parameters, String> {
        let value: Value = serde_json::from_slice(text).map_err(|error| error.to_string())?;
        let object = value.as_object().ok_or("not a JSON object")?;
        let number = |name: &str| match object.get(name) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => match value.as_i64().or_else(|| whole(value.as_f64()?)) {
                Some(n) => Ok(Some(n)),
                None => Err(format!("{name}: {value} is not a whole number")),
            },
        };
        let positive = |name: &str| match number(name)? {
            Some(n) if n < 1 => Err(format!("{name}: {n} is not 1 or more")),
            Some(n) if n > i64::from(u32::MAX) => {
                Err(format!("{name}: {n} is more than {}", u32::MAX))
            }
            n => Ok(n.map(i64::unsigned_abs)),
        };
        Ok(Parameters {
            num_ctx: positive("num_ctx")?,
            num_gpu: number("num_gpu")?,
            num_batch: positive("num_batch")?,
        })
    }
}

fn whole(number: f64) -> Option<i64> {
    let fits = number.fract() == 0.0 && number.abs() < 1e15;
    fits.then_some(number as i64)
}

/// `OLLAMA_*` variables that take memory.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Variables {
    /// `OLLAMA_CONTEXT_LENGTH`.
    pub context_length: Option<u64>,
    /// `OLLAMA_NUM_PARALLEL`; 0 leaves it to Ollama, and is `None`.
    pub num_parallel: Option<u64>,
    /// `OLLAMA_KV_CACHE_TYPE`, in small letters.
    pub kv_cache_type: Option<String>,
    /// `OLLAMA_FLASH_ATTENTION`.
    pub flash_attention: Option<bool>,
    /// `OLLAMA_GPU_OVERHEAD`, bytes.
    pub gpu_overhead: Option<u64>,
    /// `OLLAMA_SCHED_SPREAD`.
    pub sched_spread: Option<bool>,
}

impl Variables {
    /// From the environment. Ollama passes over what it cannot read; here it is an error.
    pub fn new(env: impl Fn(&str) -> Option<OsString>) -> Result<Variables, Error> {
        let text = |name: &'static str| match env(name) {
            None => Ok(None),
            Some(value) => {
                let text = value.into_string();
                let text = text.map_err(|_| wrong(name, "the value", "UTF-8"))?;
                let text = text.trim().trim_matches(['"', '\'']).to_string();
                Ok((!text.is_empty()).then_some(text))
            }
        };
        let number = |name: &'static str| match text(name)? {
            None => Ok(None),
            Some(text) => match text.parse::<u64>() {
                Ok(n) => Ok(Some(n)),
                Err(_) => Err(wrong(name, &text, "a whole number from 0 up")),
            },
        };
        let truth = |name: &'static str| {
            Ok::<_, Error>(text(name)?.map(|text| {
                // Whatever is not false is true there.
                !["0", "f", "false"].contains(&text.to_ascii_lowercase().as_str())
            }))
        };
        let kv_cache_type = text("OLLAMA_KV_CACHE_TYPE")?.map(|text| text.to_ascii_lowercase());
        Ok(Variables {
            context_length: number("OLLAMA_CONTEXT_LENGTH")?.filter(|&n| n > 0),
            num_parallel: number("OLLAMA_NUM_PARALLEL")?.filter(|&n| n > 0),
            kv_cache_type,
            flash_attention: truth("OLLAMA_FLASH_ATTENTION")?,
            gpu_overhead: number("OLLAMA_GPU_OVERHEAD")?,
            sched_spread: truth("OLLAMA_SCHED_SPREAD")?,
        })
    }
}

fn wrong(name: &'static str, text: &str, what: &'static str) -> Error {
    Error::Variable {
        name,
        text: text.to_string(),
        what,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_whole_numbers() {
        let parse = |text: &str| Parameters::parse(text.as_bytes());
        let all = parse(r#"{"num_ctx": 8192, "num_gpu": -1, "num_batch": 256.0, "stop": ["a"]}"#);
        let expected = Parameters {
            num_ctx: Some(8192),
            num_gpu: Some(-1),
            num_batch: Some(256),
        };
        assert_eq!(all, Ok(expected));
        assert_eq!(parse("{}"), Ok(Parameters::default()));
        let long = parse(r#"{"num_ctx": 99999999999}"#).unwrap_err();
        assert_eq!(long, "num_ctx: 99999999999 is more than 4294967295");
        for wrong in ["", "[]", r#"{"num_ctx": "many"}"#, r#"{"num_ctx": 0}"#] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn variables_are_read_as_ollama_reads_them() {
        let check = |line: &str| {
            let (name, value) = line.split_once('=').unwrap();
            Variables::new(|asked| (asked == name).then(|| OsString::from(value)))
        };
        let none = Variables::default;
        let is =
            |line: &str, expected: Variables| assert_eq!(check(line).unwrap(), expected, "{line}");
        is(
            "OLLAMA_CONTEXT_LENGTH=8192",
            Variables {
                context_length: Some(8192),
                ..none()
            },
        );
        is("OLLAMA_NUM_PARALLEL=0", none());
        is(
            "OLLAMA_NUM_PARALLEL=2",
            Variables {
                num_parallel: Some(2),
                ..none()
            },
        );
        is(
            "OLLAMA_KV_CACHE_TYPE=Q8_0",
            Variables {
                kv_cache_type: Some("q8_0".into()),
                ..none()
            },
        );
        is(
            "OLLAMA_FLASH_ATTENTION=1",
            Variables {
                flash_attention: Some(true),
                ..none()
            },
        );
        is(
            "OLLAMA_FLASH_ATTENTION=false",
            Variables {
                flash_attention: Some(false),
                ..none()
            },
        );
        is(
            "OLLAMA_GPU_OVERHEAD=1024",
            Variables {
                gpu_overhead: Some(1024),
                ..none()
            },
        );
        is("OLLAMA_SCHED_SPREAD=", none());
        let error = check("OLLAMA_GPU_OVERHEAD=much").unwrap_err().to_string();
        assert_eq!(
            error,
            "OLLAMA_GPU_OVERHEAD: 'much' is not a whole number from 0 up"
        );
    }
}
