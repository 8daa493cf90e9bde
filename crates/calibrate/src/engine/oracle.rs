//! The kit's program: it loads, decodes a full prompt and one token more, and says its buffers in bytes.

use std::collections::BTreeMap;
use std::ffi::OsString;

use serde_json::Value;

use super::transcript::Transcript;
use super::{LAST_LOOK, Ran, Run};
use crate::allocate::{Step, What};
use crate::log::SaidBuffers;
use crate::watch::Starter;
use crate::{Error, Expected};

pub fn run(run: &Run, starter: &Starter) -> Result<Ran, Error> {
    let mut arguments: Vec<OsString> = vec![run.expected.model.clone().into()];
    let flags = flags(&run.expected.flags).map_err(Error::Engine)?;
    arguments.extend(flags.iter().map(OsString::from));
    if let Some([first, last]) = run.expected.control_vector {
        arguments.extend(["--control-vector".into(), format!("{first},{last}").into()]);
    }
    // As llama-server reserves: one output a sequence, or as many as a draft has it check.
    match run.expected.has_draft {
        true => arguments.extend(server_outputs(run.expected.n_seq)),
        false if run.expected.embeddings => (),
        false => arguments.extend(["--n-outputs".into(), run.expected.n_seq.to_string().into()]),
    }
    arguments.push("--real".into());
    let n = run.prompt_tokens();
    if n > 0 {
        arguments.extend(["--decode".into(), n.to_string().into()]);
    }
    arguments.extend(["--linger".into(), LAST_LOOK.as_millis().to_string().into()]);
    let out = Transcript::new()?;
    let mut held = run.start(&arguments, Some(&out))?;
    starter.start(held.root());
    let (how, computed) = run.end_of(&mut held)?;
    let json: Value = serde_json::from_str(out.text()?.trim()).unwrap_or_default();
    let has_decoded = json.pointer("/result/decode/rc") == Some(&Value::from(0));
    if how != "with exit code 0" || !(has_decoded || n == 0) {
        return Err(run.failed(&format!("ended {how}")));
    }
    // LoRA adapters and control vectors are in no breakdown.
    let has_adapters = run.expected.steps.iter().any(|s| s.what == What::Adapter);
    let mut all = BTreeMap::new();
    for list in ["/result/devices", "/result/draft/devices"] {
        for (index, said) in devices(&json, list) {
            let sum: &mut SaidBuffers = all.entry(index).or_default();
            sum.model_bytes = sum.model_bytes.saturating_add(said.model_bytes);
            sum.context_bytes = sum.context_bytes.saturating_add(said.context_bytes);
            sum.compute_bytes = sum.compute_bytes.saturating_add(said.compute_bytes);
        }
    }
    if has_adapters {
        add_adapters(&mut all, &json, run.expected);
    }
    let version = json.pointer("/engine/llama").and_then(Value::as_str);
    Ok(Ran {
        prompt_tokens: run.prompt_tokens(),
        said: all,
        version: version.map(str::to_string),
        cuda: None,
        computed,
    })
}

/// By the flag that makes the kit's program count outputs as llama-server does.
fn server_outputs(n_seq: u64) -> [OsString; 3] {
    ["--server".into(), "-np".into(), n_seq.to_string().into()]
}

/// What was allocated beyond the breakdown is the adapters', which belong to the weights. On imaginary GPUs it
/// is counted; elsewhere it is taken for what was predicted.
fn add_adapters(all: &mut BTreeMap<usize, SaidBuffers>, json: &Value, expected: &Expected) {
    for (index, said) in all {
        let own = [said.model_bytes, said.context_bytes, said.compute_bytes];
        let own = own.into_iter().fold(0, u64::saturating_add);
        let counted = json.pointer(&format!("/result/cuda_malloc/{index}/bytes"));
        let bytes = match counted.and_then(Value::as_u64).filter(|&n| n > 0) {
            Some(all) => all.saturating_sub(own),
            None => adapters_on(expected, *index),
        };
        said.model_bytes = said.model_bytes.saturating_add(bytes);
    }
}

fn adapters_on(expected: &Expected, device: usize) -> u64 {
    let of = |s: &&Step| s.device == device && s.what == What::Adapter;
    let bytes = expected.steps.iter().filter(of).map(|s| s.bytes);
    bytes.fold(0, u64::saturating_add)
}

fn devices(json: &Value, list: &str) -> Vec<(usize, SaidBuffers)> {
    let devices = json.pointer(list).and_then(Value::as_array);
    let of = |device: &Value, key: &str| device.get(key).and_then(Value::as_u64).unwrap_or(0);
    let said = |device: &Value| SaidBuffers {
        model_bytes: of(device, "model"),
        context_bytes: of(device, "context"),
        compute_bytes: of(device, "compute"),
        rounding_bytes: 0,
    };
    let named = |device: &Value| {
        let name = device.get("device")?.as_str()?;
        let index = name.strip_prefix("CUDA")?.parse().ok()?;
        Some((index, said(device)))
    };
    devices.into_iter().flatten().filter_map(named).collect()
}

/// llama-server's flags as the kit's program takes them.
fn flags(server: &[String]) -> Result<Vec<String>, String> {
    let mut flags = Vec::new();
    let mut words = server.iter().map(String::as_str);
    while let Some(flag) = words.next() {
        let mut add = |words: &[&str]| flags.extend(words.iter().map(ToString::to_string));
        match flag {
            "--fit" => drop(words.next()),
            "-kvu" => add(&["--kv-unified", "1"]),
            "-no-kvu" => add(&["--kv-unified", "0"]),
            "--swa-full" => add(&["--swa-full", "1"]),
            "-lm" => add(&["--load-mode", words.next().unwrap_or("auto")]),
            "-cmoe" => add(&["--cpu-moe"]),
            "-ncmoe" => add(&["--n-cpu-moe", words.next().unwrap_or("0")]),
            "-cmoed" => add(&["--cpu-moe-draft"]),
            "-ncmoed" => add(&["--n-cpu-moe-draft", words.next().unwrap_or("0")]),
            "-ngld" => match words.next() {
                Some("all") | None => (),
                Some(n) => add(&["-ngld", n]),
            },
            "--pooling" => add(&["--pooling", pooling(words.next().unwrap_or(""))]),
            "--lora" => {
                let files = words.next().unwrap_or("");
                files.split(',').for_each(|file| add(&["--lora", file]));
            }
            "--lora-scaled" => {
                for entry in words.next().unwrap_or("").split(',') {
                    add(&["--lora", scaled(entry)?]);
                }
            }
            // The layers are told, not the file: it takes zeros.
            "--control-vector" | "--control-vector-scaled" => drop(words.next()),
            "--control-vector-layer-range" => drop((words.next(), words.next())),
            "--lora-init-without-apply" | "--mmproj" => {
                return Err(format!(
                    "the kit's program knows no {flag}: give a llama-server as --engine"
                ));
            }
            _ => add(&[flag]),
        }
    }
    Ok(flags)
}

/// The file of `FILE:SCALE`: the scale changes no memory, but none is no adapter.
fn scaled(entry: &str) -> Result<&str, String> {
    let (file, scale) = entry.rsplit_once(':').unwrap_or((entry, "1"));
    match scale.parse::<f32>() {
        Ok(0.0) => Err(format!(
            "the kit's program applies every adapter, and {file} has a scale of 0: give a llama-server as --engine"
        )),
        _ => Ok(file),
    }
}

/// By `llama_pooling_type`.
fn pooling(name: &str) -> &'static str {
    match name {
        "mean" => "1",
        "cls" => "2",
        "last" => "3",
        "rank" => "4",
        _ => "0",
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn flags_are_put_as_the_kit_has_them() {
        let check = |server: &str, kit: &str| {
            let words: Vec<String> = server.split(' ').map(str::to_string).collect();
            assert_eq!(super::flags(&words).unwrap().join(" "), kit);
        };
        check(
            "-c 4096 -np 2 -kvu -fa off -ngl 49 -dev CUDA0 --fit off",
            "-c 4096 -np 2 --kv-unified 1 -fa off -ngl 49 -dev CUDA0",
        );
        check(
            "--pooling cls -ncmoe 3 -lm none",
            "--pooling 2 --n-cpu-moe 3 --load-mode none",
        );
        check(
            "--lora a.gguf,b.gguf --lora-scaled c.gguf:0.5 --control-vector v.gguf --control-vector-layer-range 2 9",
            "--lora a.gguf --lora b.gguf --lora c.gguf",
        );
        check(
            "-md d.gguf --spec-type draft-simple -ngld all -ncmoed 2 -cmoed",
            "-md d.gguf --spec-type draft-simple --n-cpu-moe-draft 2 --cpu-moe-draft",
        );
        for unknown in ["--mmproj p.gguf", "--lora-scaled c.gguf:0"] {
            let words: Vec<String> = unknown.split(' ').map(str::to_string).collect();
            assert!(super::flags(&words).unwrap_err().contains("llama-server"));
        }
    }
}
