//! `oracle graphs`: the real compute graphs of every model, node by node, compactly, under `fixtures/graphs`.
//!
//! One gzip file a model and setting. The columns are the kit's (kit/README.md, "--graph") without `nb`, `buft` and
//! `split`; a tensor that already has a buffer (weights, caches, views of them) carries the flag `held`. Of the
//! generation pass (`tg`) only what differs from the prompt pass (`pp`) is written: a row whose id stands in `pp` too
//! and that differs in shape alone is `tg  =  ID  NE  VIEW`; one that does not differ at all is left out, and
//! `tg  -  KIND  ID` is a row that `pp` has and `tg` has not.
//! Rows keep the order of the engine: a `split` row, then its nodes. An empty id in `pp` is the next of its kind:
//! l0, l1, ..; s0, s1, ..; n0, n1, .. .

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::io::Write;
use std::path::Path;

use flate2::{Compression, GzBuilder};

use crate::error::{Context, Error, Result};
use crate::kit::Engine;
use crate::models::{self, Entry, Set};

const GPUS: &str = "G0:80GiB:8.6,G1:80GiB:8.6";
const COLUMNS: [(&str, usize); 9] = [
    ("kind", 1),
    ("id", 2),
    ("op", 3),
    ("name", 4),
    ("type", 5),
    ("ne", 6),
    ("flags", 8),
    ("view", 9),
    ("src", 10),
];
const BUFFER_TYPE: usize = 11;
const BACKEND: usize = 12;

/// Writes the files into `out`, in place of those there.
pub fn make(out: &Path) -> Result<()> {
    let engine = Engine;
    let folder = tempfile::tempdir().context("a temporary folder")?;
    let mut entries = models::index(Set::Real)?;
    entries.extend(models::index(Set::Made)?);
    models::make_sparse(&entries, folder.path())?;
    for folder in [out, &out.join("made")] {
        fs::create_dir_all(folder).context(folder.display())?;
    }
    let mut architectures = BTreeSet::new();
    let mut total = 0;
    for entry in &entries {
        let first_of_its_kind = architectures.insert(entry.arch.as_str());
        for flash_attn in ["on", "off"] {
            if flash_attn == "on" || first_of_its_kind {
                match write_one(&engine, entry, flash_attn, folder.path(), out) {
                    Ok(bytes) => total += bytes,
                    // PLM with flash attention: the engine aborts, and there is no graph
                    Err(error) => {
                        eprintln!("left out: {} with -fa {flash_attn}: {error}", entry.file)
                    }
                }
            }
        }
    }
    eprintln!(
        "{} files for {} architectures, {total} bytes",
        entries.len() + architectures.len(),
        architectures.len()
    );
    Ok(())
}

fn write_one(
    engine: &Engine,
    entry: &Entry,
    flash_attn: &str,
    folder: &Path,
    out: &Path,
) -> Result<usize> {
    let flags = format!("-ngl 99 -c 4096 -fa {flash_attn} --n-outputs 1");
    let table = folder.join("graph.tsv");
    let mut words: Vec<String> = flags.split(' ').map(str::to_owned).collect();
    words.extend([
        "--real".to_owned(),
        "--graph".to_owned(),
        table.display().to_string(),
    ]);
    let json = engine.ask(
        &[("VGPU", GPUS), ("VGPU_NO_OOM", "1")],
        &folder.join(&entry.file),
        &words,
    )?;
    let text = fs::read_to_string(&table).context(table.display())?;
    let mut compact = format!(
        "# llama.cpp v0.5.0 commit {}, {}, VGPU={GPUS} {flags}, real load\n# pass\t{}\tbackend\n",
        json["engine"]["commit"].as_str().unwrap_or("?"),
        entry.file,
        COLUMNS.map(|column| column.0).join("\t")
    );
    compact += &shortened(&text)?;
    let mut gzip = GzBuilder::new()
        .mtime(0)
        .write(Vec::new(), Compression::best());
    gzip.write_all(compact.as_bytes()).context("gzip")?;
    let bytes = gzip.finish().context("gzip")?;
    let name = out.join(format!(
        "{}.fa-{flash_attn}.tsv.gz",
        entry.file.trim_end_matches(".gguf")
    ));
    if let Some(parent) = name.parent() {
        fs::create_dir_all(parent).context(parent.display())?;
    }
    fs::write(&name, &bytes).context(name.display())?;
    Ok(bytes.len())
}

/// The kit's table without what is not needed, `tg` told as differences from `pp`.
pub fn shortened(table: &str) -> Result<String> {
    let mut prompt: BTreeMap<(String, String), Vec<String>> = BTreeMap::new();
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    let mut in_generation = BTreeSet::new();
    let mut text = String::new();
    for line in table.lines().skip(1) {
        let cells: Vec<&str> = line.split('\t').collect();
        if cells.len() <= BACKEND {
            return Err(Error::new(format!(
                "a graph row with {} columns: {line}",
                cells.len()
            )));
        }
        let mut row: Vec<String> = COLUMNS
            .iter()
            .map(|&(_, at)| cells[at].to_owned())
            .collect();
        row.push(cells[BACKEND].to_owned());
        if cells[BUFFER_TYPE] != "-" {
            row[6] = if row[6] == "-" {
                "held".to_owned()
            } else {
                format!("{},held", row[6])
            };
        }
        let key = (row[0].clone(), row[1].clone());
        if cells[0] == "tg" {
            in_generation.insert(key.clone());
        }
        if cells[0] == "pp" {
            prompt.insert(key.clone(), row.clone());
            let count = counts.entry(key.0.clone()).or_default();
            if matches!(cells[1], "leaf" | "split" | "node")
                && key.1.get(1..) == Some(count.to_string().as_str())
            {
                row[1].clear();
            }
            *count += 1;
        } else if let (Some(same), false) = (prompt.get(&key), key.0 == "graph") {
            let differs: Vec<usize> = (0..row.len()).filter(|&i| row[i] != same[i]).collect();
            if differs.is_empty() {
                continue;
            }
            if differs.iter().all(|&i| i == 5 || i == 7) {
                let _ = writeln!(text, "{}\t=\t{}\t{}\t{}", cells[0], row[1], row[5], row[7]);
                continue;
            }
        }
        let _ = writeln!(text, "{}\t{}", cells[0], row.join("\t"));
    }
    for (kind, id) in prompt.keys().filter(|key| !in_generation.contains(*key)) {
        let _ = writeln!(text, "tg\t-\t{kind}\t{id}");
    }
    Ok(text)
}
