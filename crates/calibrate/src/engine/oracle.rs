//! The kit's program: it loads, decodes a full prompt and one token more, and says its buffers in bytes.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::time::Duration;

use serde_json::Value;

use super::{Run, read};
use crate::Error;
use crate::hold::Held;
use crate::log::SaidBuffers;
use crate::watch::Starter;

const PERIOD: Duration = Duration::from_millis(100);

pub fn run(run: &Run, starter: &Starter) -> Result<BTreeMap<usize, SaidBuffers>, Error> {
    let mut arguments: Vec<OsString> = vec![run.expected.model.clone().into()];
    arguments.extend(flags(&run.expected.flags).iter().map(OsString::from));
    if !run.expected.embeddings {
        // As llama-server reserves: one output a sequence.
        arguments.extend(["--n-outputs".into(), run.expected.n_seq.to_string().into()]);
    }
    let n = run.prompt_tokens().to_string();
    arguments.extend(["--real", "--decode", n.as_str()].map(OsString::from));
    let mut held = Held::start(&run.options.program, &arguments, &run.log, Some(&run.out))?;
    starter.start(held.root());
    let how = loop {
        run.left()?;
        if let Some(how) = held.ended(PERIOD) {
            break how.to_string();
        }
    };
    let out = read(&run.out)?;
    let json: Value = serde_json::from_str(out.trim()).unwrap_or_default();
    if how != "with exit code 0" || json.pointer("/result/decode/rc") != Some(&Value::from(0)) {
        return Err(run.failed(&format!("ended {how}")));
    }
    let devices = json.pointer("/result/devices").and_then(Value::as_array);
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
    Ok(devices.into_iter().flatten().filter_map(named).collect())
}

/// llama-server's flags as the kit's program takes them.
fn flags(server: &[String]) -> Vec<String> {
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
            "--pooling" => add(&["--pooling", pooling(words.next().unwrap_or(""))]),
            _ => add(&[flag]),
        }
    }
    flags
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
            assert_eq!(super::flags(&words).join(" "), kit);
        };
        check(
            "-c 4096 -np 2 -kvu -fa off -ngl 49 -dev CUDA0 --fit off",
            "-c 4096 -np 2 --kv-unified 1 -fa off -ngl 49 -dev CUDA0",
        );
        check(
            "--pooling cls -ncmoe 3 -lm none",
            "--pooling 2 --n-cpu-moe 3 --load-mode none",
        );
    }
}
