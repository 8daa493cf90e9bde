//! Node by node: the graphs of `fixtures/graphs`, dumped by the real llama.cpp
//! (`cargo run -p vramfit-oracle -- graphs`), against those that vramfit builds.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    clippy::disallowed_types
)] // tests read files and may panic

mod common;

use common::fixture;
use common::graphs::{around, engine_tables, first_difference, our_table};
use std::io::Read;
use vramfit_arch::Model;
use vramfit_estimate::{
    EngineProfile, FlashAttention, Layout, LayoutDevice, Outputs, Pass, RunConfig, node_list,
};
use vramfit_ggml::ComputeCapability;
use vramfit_gguf::Header;

fn read(path: &std::path::Path) -> String {
    let mut text = String::new();
    let file = std::fs::File::open(path).unwrap();
    flate2::read::GzDecoder::new(file)
        .read_to_string(&mut text)
        .unwrap();
    text
}

/// Two of every architecture that has a truth row, with flash attention and without; PLM aborts with it.
fn every_architecture_has_graphs(files: &[std::path::PathBuf]) {
    let mut seen = std::collections::BTreeMap::new();
    for path in files {
        let name = path
            .strip_prefix(fixture("graphs"))
            .unwrap()
            .to_str()
            .unwrap();
        let (model, fa) = name
            .trim_end_matches(".tsv.gz")
            .rsplit_once(".fa-")
            .unwrap();
        let header = Header::open(fixture(&format!("gguf/{model}.gguf"))).unwrap();
        let settings: &mut std::collections::BTreeSet<String> = seen
            .entry(header.architecture().unwrap().to_string())
            .or_default();
        settings.insert(fa.to_string());
    }
    let names = std::fs::read_to_string(fixture("architectures-llama.cpp-v0.5.0.txt")).unwrap();
    for name in names
        .lines()
        .filter(|l| !l.starts_with('#') && !l.contains('\t'))
    {
        let n = seen.get(name).map_or(0, |settings| settings.len());
        let expected = if name == "plm" { 1 } else { 2 };
        assert_eq!(n, expected, "graphs of {name}");
    }
}

#[test]
fn every_node_is_the_engines() {
    // A folder without files is not in the repository.
    let in_folder = |folder| std::fs::read_dir(fixture(folder)).into_iter().flatten();
    let files = in_folder("graphs").chain(in_folder("graphs/made"));
    let mut files: Vec<_> = files
        .map(|e| e.unwrap().path())
        .filter(|p| p.is_file())
        .collect();
    files.sort();
    every_architecture_has_graphs(&files);
    assert!(files.len() >= 395, "only {} graphs", files.len());
    let mut differences = Vec::new();
    for path in files {
        let name = path
            .strip_prefix(fixture("graphs"))
            .unwrap()
            .to_str()
            .unwrap()
            .to_string();
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
            if let Some(at) = first_difference(engine, &ours) {
                let rows = around(engine, &ours, at, 1);
                differences.push(format!("{name} {pass:?}\n{rows}"));
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
