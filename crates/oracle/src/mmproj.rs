//! `oracle mmproj`: header-only multimodal projectors made of specs, what the real clip.cpp takes for each
//! (`kit/mmproj.cpp`), and where vramfit says otherwise.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use serde::Deserialize;
use serde_json::Value;
use vramfit_arch::clip::Modality;
use vramfit_estimate::{EngineProfile, RowKind, projector_node_list};
use vramfit_ggml::Type;
use vramfit_gguf::{Header, Writer};

use crate::common::graphs::{around, engine_tables, first_difference, our_table};
use crate::common::mmproj::{COLUMNS, Row, Took};
use crate::error::{Context, Error, Result};
use crate::graphs::shortened;
use crate::kit::Engine;
use crate::models::{fixtures, make_one_sparse};
use crate::synth::{flat, short_name, value};

/// A spec; CONTRIBUTING.md describes it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Spec {
    model: Option<String>,
    #[allow(dead_code)] // for people
    source: String,
    matrices: String,
    #[serde(default)]
    types: BTreeMap<String, String>,
    keys: toml::Table,
    tensors: BTreeMap<String, Vec<i64>>,
}

/// GPUs: what matters is which kernels of attention they run.
const GPUS: [&str; 3] = ["6.1", "8.6", "9.0"];
const FLAGS: [&str; 5] = [
    "-fa auto",
    "-fa on",
    "-fa off",
    "-fa auto --no-offload",
    "-fa auto --image-max-tokens 512",
];

/// Makes the projectors with these names, all where there are none, and holds vramfit against the engine. Returns
/// the exit code: 1 if something differs.
pub fn run(names: &[String]) -> Result<i32> {
    let specs = fixtures().join("specs/mmproj");
    let all = names.is_empty();
    let names = match all {
        true => all_names(&specs)?,
        false => names.to_vec(),
    };
    let mut table = format!("# llama.cpp v0.5.0, tools/mtmd/clip.cpp\n{COLUMNS}\n");
    let (mut n_rows, mut n_bad) = (0, 0);
    for name in &names {
        match one(name, &specs) {
            Ok((rows, differences)) => {
                n_rows += rows.len();
                n_bad += usize::from(!differences.is_empty());
                println!("{name}: {} rows\n{differences}", rows.len());
                for row in &rows {
                    let _ = writeln!(table, "{}", row.line());
                }
            }
            Err(error) => {
                println!("{name}: {error}");
                n_bad += 1;
            }
        }
    }
    println!(
        "{} projectors, {n_rows} rows, {n_bad} differ or are refused",
        names.len()
    );
    if all {
        let out = fixtures().join("truth/mmproj-llama.cpp-v0.5.0.tsv");
        fs::write(&out, table).context(out.display())?;
    }
    Ok(i32::from(n_bad > 0))
}

fn all_names(folder: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(folder).context(folder.display())? {
        let path = entry.context(folder.display())?.path();
        names.extend(path.file_stem().map(|s| s.to_string_lossy().into_owned()));
    }
    names.sort();
    Ok(names)
}

/// The rows of one projector, and in words where vramfit differs.
fn one(name: &str, specs: &Path) -> Result<(Vec<Row>, String)> {
    let path = specs.join(format!("{name}.toml"));
    let text = fs::read_to_string(&path).context(path.display())?;
    let spec: Spec = toml::from_str(&text).context(path.display())?;
    let bytes = spec.header()?;
    let out = fixtures().join(format!("gguf/mmproj/{name}.gguf"));
    fs::create_dir_all(out.parent().context("mmproj")?).context(out.display())?;
    if !fs::read(&out).is_ok_and(|old| old == bytes) {
        fs::write(&out, &bytes).context(out.display())?;
    }
    let header = Header::open(&out).context("the header")?;
    let folder = tempfile::tempdir().context("a temporary folder")?;
    let made = folder.path().join("made.gguf");
    make_one_sparse(&out, &made, header.file_bytes())?;

    let (mut rows, mut differences) = (Vec::new(), String::new());
    for gpu in GPUS {
        for flags in FLAGS {
            if gpu != "8.6" && flags.contains("--") {
                continue;
            }
            let graph = folder.path().join("graph.tsv");
            let took = ask(&made, gpu, flags, &graph)?;
            for (tower, took) in took {
                let row = Row {
                    file: format!("{name}.gguf"),
                    gpu: gpu.to_owned(),
                    flags: flags.to_owned(),
                    tower,
                    took,
                };
                let text = fs::read_to_string(&graph).context(graph.display())?;
                differences += &difference(&row, &header, &text)?;
                rows.push(row);
            }
        }
    }
    Ok((rows, differences))
}

/// What the engine takes for each tower.
fn ask(file: &Path, gpu: &str, flags: &str, graph: &Path) -> Result<Vec<(String, Took)>> {
    let mut words: Vec<&str> = flags.split(' ').collect();
    words.extend(["--graph", graph.to_str().context("a path")?]);
    let json = Engine.projector(&format!("G:80GiB:{gpu}"), file, &words)?;
    let towers = json["towers"].as_array().context("towers")?;
    let number = |value: &Value| value.as_u64().unwrap_or(0);
    let on_gpu = |value: &Value| number(&value["CUDA0"]);
    let mut allocated = 0;
    let mut all = Vec::new();
    for tower in towers {
        let weights = &tower["weights"];
        let took = Took {
            flash_attn: tower["flash_attn"].as_bool().unwrap_or(false),
            weights: on_gpu(weights) + number(&weights["CPU"]),
            allocated: number(&tower["weights_allocated"]),
            compute: on_gpu(&tower["compute"]),
            compute_host: number(&tower["compute"]["CPU"]),
        };
        if on_gpu(weights) > 0 {
            allocated += took.allocated + took.compute;
        }
        let name = tower["tower"].as_str().context("a tower's name")?;
        all.push((name.to_owned(), took));
    }
    if json["cuda_malloc"][0].as_u64() != Some(allocated) {
        let found = &json["cuda_malloc"];
        return Err(Error::new(format!(
            "cudaMalloc was asked for {found}, not for {allocated}"
        )));
    }
    Ok(all)
}

/// Where vramfit says otherwise: the bytes, and the first node that differs.
fn difference(row: &Row, header: &Header, graph: &str) -> Result<String> {
    let mut text = String::new();
    match row.ours(header) {
        Ok(took) if took == row.took => {}
        Ok(took) => {
            let _ = writeln!(
                text,
                "  {} {} {}:\n    engine {:?}\n    ours   {took:?}",
                row.gpu, row.flags, row.tower, row.took
            );
        }
        Err(error) => {
            let _ = writeln!(text, "  {} {}: {error}", row.flags, row.tower);
            return Ok(text);
        }
    }
    if row.modality() == Modality::Speech {
        return Ok(text); // nothing is reserved for it
    }
    let of_tower = format!("{}\t", row.tower);
    let mut table = String::from("header\n");
    for line in graph.lines() {
        if let Some(rest) = line.strip_prefix(&of_tower) {
            let _ = writeln!(table, "pp\t{rest}");
        }
    }
    let [engine, _] = engine_tables(&shortened(&table)?);
    let projector = row.projector(header).map_err(Error::new)?;
    let towers = &projector.towers;
    let tower = towers.iter().find(|t| t.modality == row.modality());
    let tower = tower.context("the tower")?;
    let profile = EngineProfile::LLAMA_CPP_V0_5_0;
    let rows = projector_node_list(tower, &row.config(), &profile).context("our graph")?;
    let mut ours = our_table(&rows);
    ours.retain(|key, _| matches!(key.0, RowKind::Leaf | RowKind::Node));
    if let Some(at) = first_difference(&engine, &ours) {
        let rows = around(&engine, &ours, at, 3);
        let _ = write!(
            text,
            "  {} {}: first node that differs:\n{rows}",
            row.gpu, row.flags
        );
    }
    Ok(text)
}

impl Spec {
    fn header(&self) -> Result<Vec<u8>> {
        let mut writer = Writer::new();
        let keys = flat(&self.keys);
        let has = |prefix: &str| keys.keys().any(|key| key.starts_with(prefix));
        let mut key = |name: &str, value: vramfit_gguf::ValueBuf| {
            let done = writer.key(name, value).map(drop);
            done.context(format!("key {name}"))
        };
        key("general.architecture", "clip".into())?;
        key("general.type", "mmproj".into())?;
        if let Some(model) = &self.model {
            key("general.name", model.as_str().into())?;
        }
        for (modality, name) in [
            ("vision", "vision"),
            ("audio", "audio"),
            ("gen.audio", "gen_audio"),
        ] {
            if has(&format!("{modality}.embedding_length")) {
                key(&format!("clip.has_{name}_encoder"), true.into())?;
            }
        }
        if has("vision.embedding_length") {
            for name in ["image_mean", "image_std"] {
                key(&format!("clip.vision.{name}"), vec![0.5f32; 3].into())?;
            }
        }
        for (name, toml) in &keys {
            let name = format!("clip.{name}");
            key(&name, value(toml).context(format!("key {name}"))?)?;
        }
        for (name, ne) in self.all_tensors()? {
            writer.tensor(&name, self.type_of(&name, &ne)?, &ne);
        }
        writer.finish().context("the header")
    }

    /// The tensors with every layer and every bias.
    fn all_tensors(&self) -> Result<Vec<(String, Vec<i64>)>> {
        let mut all = Vec::new();
        for (pattern, ne) in &self.tensors {
            let modality = match pattern.starts_with("a.") {
                true => "audio",
                false => "vision",
            };
            let n_layer = || {
                let count = self.keys.get(modality).and_then(|t| t.get("block_count"));
                count.and_then(toml::Value::as_integer).context(modality)
            };
            let names = match pattern.split_once('*') {
                Some((before, after)) => (0..n_layer()?)
                    .map(|il| format!("{before}{il}{after}"))
                    .collect(),
                None => vec![pattern.clone()],
            };
            for name in names {
                match name.strip_suffix('+') {
                    Some(stem) => {
                        all.push((format!("{stem}weight"), ne.clone()));
                        let last = ne.last().copied().context("a shape")?;
                        all.push((format!("{stem}bias"), vec![last]));
                    }
                    None => all.push((name, ne.clone())),
                }
            }
        }
        Ok(all)
    }

    /// As the converter chooses: what is no matrix, and learned positions, stay f32.
    fn type_of(&self, name: &str, ne: &[i64]) -> Result<Type> {
        let short = short_name(name);
        let parse = |text: &String| Type::from_name(text).context(format!("type {text}"));
        if let Some(ty) = self.types.get(name).or(self.types.get(&short)) {
            return parse(ty);
        }
        let is_matrix = ne.len() > 1 && name.contains(".weight") && !name.contains("position_embd");
        if !is_matrix {
            return Ok(Type::F32);
        }
        let ty = parse(&self.matrices)?;
        let fits = ne
            .first()
            .is_some_and(|n| n.unsigned_abs().is_multiple_of(ty.block_size()));
        let is_kernel = ne.len() > 2;
        Ok(if fits && !(is_kernel && ty.is_quantized()) {
            ty
        } else {
            Type::F16
        })
    }
}
