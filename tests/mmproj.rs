//! What multimodal projectors take, by the real clip.cpp (`cargo run -p vramfit-oracle -- mmproj`), against what
//! vramfit says.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    clippy::disallowed_types
)] // tests read files and may panic

mod common;

use common::fixture;
use common::mmproj::Row;
use vramfit_arch::clip::{ImageTokens, Projector};
use vramfit_arch::{Error, Model};
use vramfit_estimate::{EngineProfile, ProjectorConfig, projector_use};
use vramfit_ggml::Type;
use vramfit_gguf::{Header, Writer};

fn header(file: &str) -> Header {
    Header::open(fixture(&format!("gguf/mmproj/{file}"))).unwrap()
}

#[test]
fn every_byte_is_the_engines() {
    let table = std::fs::read_to_string(fixture("truth/mmproj-llama.cpp-v0.5.0.tsv")).unwrap();
    let rows = table.lines().filter(|line| !line.starts_with('#'));
    let rows: Vec<Row> = rows.map(|line| Row::parse(line).unwrap()).collect();
    assert!(rows.len() >= 913, "only {} rows", rows.len());
    let mut wrong = Vec::new();
    for row in &rows {
        match row.ours(&header(&row.file)) {
            Ok(took) if took == row.took => {}
            other => wrong.push(format!("{}\n  ours {other:?}", row.line())),
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_model_is_no_projector_and_a_projector_no_model() {
    let projector = header("gemma3.gguf");
    // llama.cpp v0.5.0, src/llama.cpp: the words it refuses such a file with
    let refused = Model::load(&projector).unwrap_err();
    assert_eq!(refused, Error::ProjectorAsModel);
    let text = refused.to_string();
    assert!(
        text.starts_with("CLIP cannot be used as main model"),
        "{text}"
    );
    assert!(text.contains("--mmproj"), "{text}");
    assert_eq!(
        Model::load_as_unknown(&projector).unwrap_err(),
        Error::ProjectorAsModel
    );
    let folder = std::fs::read_dir(fixture("gguf/made")).unwrap();
    let model = folder.map(|f| f.unwrap().path()).find(|p| p.is_file());
    let model = Header::open(model.unwrap()).unwrap();
    let refused = Projector::load(&model, ImageTokens::default());
    assert!(matches!(refused, Err(Error::NoProjector { .. })));
}

/// The engine stops with a failed assertion where a kernel a channel is f32: its product has an f16 side.
#[test]
fn types_that_llama_cpp_does_not_multiply_are_an_error() {
    let real = header("mobilevlm-v2.gguf");
    let mut writer = Writer::with_format(real.version(), real.byte_order());
    for (key, value) in real.keys() {
        writer.copy_key(key, value);
    }
    for t in real.tensors() {
        let ty = match t.name.as_str() {
            "mm.model.peg.0.weight" => Type::F32,
            _ => t.ty,
        };
        writer.tensor(&t.name, ty, &t.ne);
    }
    let header = Header::parse(writer.finish().unwrap()).unwrap();
    let projector = Projector::load(&header, ImageTokens::default()).unwrap();
    let profile = EngineProfile::LLAMA_CPP_V0_5_0;
    let refused = projector_use(&projector, &ProjectorConfig::default(), &profile).unwrap_err();
    assert!(refused.to_string().contains("multiplies"), "{refused}");
}

#[test]
fn a_cut_or_damaged_header_is_an_error_and_no_panic() {
    for file in ["qwen2.5omni.gguf", "mistral-small-3.1.gguf", "glm4v.gguf"] {
        let bytes = std::fs::read(fixture(&format!("gguf/mmproj/{file}"))).unwrap();
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        for _ in 0..150 {
            let mut bytes = bytes.clone();
            for _ in 0..3 {
                state = state
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1);
                let at = (state >> 33) as usize % bytes.len().min(1500);
                bytes[at] = (state >> 24) as u8;
            }
            let folder = std::env::temp_dir();
            let path = folder.join(format!("vramfit-{}-{file}", std::process::id()));
            std::fs::write(&path, &bytes).unwrap();
            let header = Header::open(&path);
            std::fs::remove_file(&path).unwrap();
            let Ok(header) = header else { continue };
            if let Ok(projector) = Projector::load(&header, ImageTokens::default()) {
                let profile = EngineProfile::LLAMA_CPP_V0_5_0;
                let _ = projector_use(&projector, &ProjectorConfig::default(), &profile);
            }
        }
    }
}
