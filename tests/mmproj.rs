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

/// Bytes changed by chance in every header: an error or an answer, no panic. `VRAMFIT_ROBUST_CASES` for more.
#[test]
fn a_damaged_header_is_an_error_and_no_panic() {
    let cases = std::env::var("VRAMFIT_ROBUST_CASES");
    let cases: usize = cases.map_or(1_500, |n| n.parse().unwrap());
    let folder = std::fs::read_dir(fixture("gguf/mmproj")).unwrap();
    let mut files: Vec<_> = folder.map(|file| file.unwrap().path()).collect();
    files.sort();
    assert!(files.len() >= 78, "only {} projectors", files.len());
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (state >> 33) as usize
    };
    for case in 0..cases {
        let mut bytes = std::fs::read(&files[case % files.len()]).unwrap();
        // half of them among the keys, half anywhere
        let end = match next() % 2 {
            0 => bytes.len().min(1500),
            _ => bytes.len(),
        };
        for _ in 0..1 + next() % 3 {
            let at = next() % end;
            bytes[at] = next() as u8;
        }
        let Ok(header) = Header::parse(bytes) else {
            continue;
        };
        if let Ok(projector) = Projector::load(&header, ImageTokens::default()) {
            let profile = EngineProfile::LLAMA_CPP_V0_5_0;
            let _ = projector_use(&projector, &ProjectorConfig::default(), &profile);
        }
    }
}

/// Shapes and numbers that lie, in every header.
#[test]
fn shapes_that_lie_are_an_error_and_no_panic() {
    const SHAPES: [i64; 9] = [0, 1, 2, 3, 7, 4096, 1 << 20, 1 << 31, 1 << 40];
    const NUMBERS: [u32; 8] = [0, 1, 2, 3, 17, 4095, 65_535, i32::MAX as u32];
    let cases = std::env::var("VRAMFIT_ROBUST_CASES");
    let cases: usize = cases.map_or(1_500, |n| n.parse().unwrap());
    let folder = std::fs::read_dir(fixture("gguf/mmproj")).unwrap();
    let mut files: Vec<_> = folder.map(|file| file.unwrap().path()).collect();
    files.sort();
    let headers: Vec<Header> = files.iter().map(|f| Header::open(f).unwrap()).collect();
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut next = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (state >> 33) as usize
    };
    let mut sized = 0;
    for case in 0..cases {
        let real = &headers[case % headers.len()];
        let mut writer = Writer::with_format(real.version(), real.byte_order());
        let (n_keys, n_tensors) = (real.keys().len(), real.tensors().len());
        let key_at = if next() % 2 == 0 {
            next() % n_keys
        } else {
            n_keys
        };
        let tensors_at = [next() % n_tensors, next() % n_tensors];
        for (at, (key, value)) in real.keys().enumerate() {
            match value.as_i64() {
                Some(_) if at == key_at => {
                    let number = NUMBERS[next() % NUMBERS.len()];
                    writer.key(key, number).unwrap()
                }
                _ => writer.copy_key(key, value),
            };
        }
        for (at, t) in real.tensors().iter().enumerate() {
            let mut ne = t.ne;
            if tensors_at.contains(&at) && key_at == n_keys {
                ne[next() % 4] = SHAPES[next() % SHAPES.len()];
            }
            writer.tensor(&t.name, t.ty, &ne);
        }
        let Ok(bytes) = writer.finish() else { continue };
        let Ok(header) = Header::parse(bytes) else {
            continue;
        };
        let Ok(projector) = Projector::load(&header, ImageTokens::default()) else {
            continue;
        };
        let profile = EngineProfile::LLAMA_CPP_V0_5_0;
        sized +=
            usize::from(projector_use(&projector, &ProjectorConfig::default(), &profile).is_ok());
    }
    assert!(sized > cases / 10, "{sized} of {cases} have an answer");
}
