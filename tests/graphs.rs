//! Node by node: the graphs of `fixtures/graphs`, dumped by the real llama.cpp
//! (`cargo run -p vramfit-oracle -- graphs`), against those that vramfit builds.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    clippy::disallowed_types
)] // tests read files and may panic

mod common;

use common::fixture;
use std::collections::BTreeMap;
use std::io::Read;
use vramfit_arch::Model;
use vramfit_estimate::{
    EngineProfile, FlashAttention, Layout, LayoutDevice, NodeRow, Outputs, Pass, RowKind,
    RunConfig, node_list,
};
use vramfit_ggml::ComputeCapability;
use vramfit_gguf::Header;

/// Rows by kind and id, each as one line.
type Table = BTreeMap<(String, String), String>;

fn read(path: &std::path::Path) -> String {
    let mut text = String::new();
    let file = std::fs::File::open(path).unwrap();
    flate2::read::GzDecoder::new(file)
        .read_to_string(&mut text)
        .unwrap();
    text
}

/// Both passes as the engine built them. The generation pass is stored as what differs.
fn engine_tables(text: &str) -> [Table; 2] {
    let mut prompt: BTreeMap<(String, String), Vec<String>> = BTreeMap::new();
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    let mut generation = None;
    for line in text.lines().filter(|l| !l.starts_with('#')) {
        let f: Vec<&str> = line.split('\t').collect();
        if f[1] == "graph" {
            continue;
        }
        if f[0] == "pp" {
            let count = counts.entry(f[1].to_string()).or_default();
            let id = if f[2].is_empty() {
                format!("{}{count}", &f[1][..1])
            } else {
                f[2].into()
            };
            *count += 1;
            let row = f[3..].iter().map(|s| s.to_string()).collect();
            prompt.insert((f[1].to_string(), id), row);
            continue;
        }
        let table = generation.get_or_insert_with(|| prompt.clone());
        match f[1] {
            "=" => {
                let kind = if f[2].starts_with('l') {
                    "leaf"
                } else {
                    "node"
                };
                let row = table
                    .get_mut(&(kind.to_string(), f[2].to_string()))
                    .unwrap();
                (row[3], row[5]) = (f[3].to_string(), f[4].to_string());
            }
            "-" => {
                table.remove(&(f[2].to_string(), f[3].to_string()));
            }
            kind => {
                let row = f[3..].iter().map(|s| s.to_string()).collect();
                table.insert((kind.to_string(), f[2].to_string()), row);
            }
        }
    }
    let generation = generation.unwrap_or_else(|| prompt.clone());
    [prompt, generation].map(|t| {
        t.into_iter()
            .map(|(k, row)| (k.clone(), line(&k.0, &row)))
            .collect()
    })
}

/// op, type, shape, flags, view, sources and backend; of splits and dependencies what they have.
fn line(kind: &str, row: &[String]) -> String {
    let [op, name, ty, ne, flags, view, sources, backend] = row else {
        panic!("{row:?}")
    };
    let (view, _) = view.split_once('+').unwrap_or((view, ""));
    let flags: Vec<&str> = flags.split(',').filter(|f| *f != "nocompute").collect();
    let flags = if flags.is_empty() {
        "-".to_string()
    } else {
        flags.join(",")
    };
    match kind {
        "split" => format!("{name} {sources} {backend}"),
        "dep" => sources.clone(),
        _ => format!("{op} {ty} {ne} {flags} {view} {sources} {backend}"),
    }
}

fn our_table(rows: &[NodeRow]) -> Table {
    let or_dash = |s: String| if s.is_empty() { "-".to_string() } else { s };
    let text = |r: &NodeRow| {
        let sources = or_dash(r.sources.join(","));
        let ne = r.ne.map(|n| n.to_string()).join(",");
        let flags = or_dash(r.flags.join(","));
        let view = or_dash(r.view.clone().unwrap_or_default());
        match r.kind {
            RowKind::Split => format!("{} {sources} {}", r.op, r.backend),
            RowKind::Dependency => sources,
            _ => format!(
                "{} {} {ne} {flags} {view} {sources} {}",
                r.op, r.ty, r.backend
            ),
        }
    };
    let kind = |k| match k {
        RowKind::Leaf => "leaf",
        RowKind::Node => "node",
        RowKind::Split => "split",
        RowKind::Dependency => "dep",
    };
    rows.iter()
        .map(|r| ((kind(r.kind).to_string(), r.id.clone()), text(r)))
        .collect()
}

#[test]
fn every_node_is_the_engines() {
    let mut files: Vec<_> = std::fs::read_dir(fixture("graphs"))
        .unwrap()
        .map(|e| e.unwrap().path())
        .collect();
    files.sort();
    assert!(files.len() >= 88, "only {} graphs", files.len());
    let mut differences = Vec::new();
    for path in files {
        let name = path.file_name().unwrap().to_str().unwrap().to_string();
        let (model_name, fa) = name
            .trim_end_matches(".tsv.gz")
            .rsplit_once(".fa-")
            .unwrap();
        let header = Header::open(fixture(&format!("gguf/{model_name}.gguf"))).unwrap();
        let model = Model::load(&header).unwrap();
        let mut run = RunConfig::default();
        run.flash_attention = if fa == "on" {
            FlashAttention::On
        } else {
            FlashAttention::Off
        };
        run.outputs = Outputs::AtMost(1);
        let device = LayoutDevice::new(ComputeCapability(860));
        let layout = Layout {
            devices: vec![device; 2],
            ..Layout::default()
        };
        let tables = engine_tables(&read(&path));
        for (engine, pass) in tables.iter().zip(Pass::ALL) {
            let profile = EngineProfile::LLAMA_CPP_V0_5_0;
            let rows = node_list(&model, &run, &layout, &profile, pass).unwrap();
            let ours = our_table(&rows);
            let mut keys: Vec<_> = engine.keys().chain(ours.keys()).collect();
            keys.sort_by_key(|(kind, id)| (kind.clone(), id[1..].parse::<usize>().unwrap()));
            if let Some(key) = keys.into_iter().find(|k| engine.get(*k) != ours.get(*k)) {
                let (theirs, our) = (engine.get(key), ours.get(key));
                differences.push(format!("{name} {pass:?} {key:?}\n  {theirs:?}\n  {our:?}"));
            }
        }
    }
    assert!(
        differences.is_empty(),
        "{} differ\n{}",
        differences.len(),
        differences.join("\n")
    );
}
