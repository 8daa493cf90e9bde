//! Adapters beside a model, for the cases of `oracle adapters`.

use std::path::{Path, PathBuf};

use vramfit_arch::Model;
use vramfit_ggml::Type;
use vramfit_gguf::Header;

use crate::common::adapters::{Rule, Targets};
use crate::diff::subject::Subject;
use crate::error::{Context, Result};
use crate::models::make_sized;
use crate::random::Random;
use crate::settings::Settings;

/// The engine reads an adapter, so that larger ones cost time: they leave out layers.
const ADAPTER_BYTES: u64 = 48 << 20;

/// The same settings with adapters, whose files are made.
pub fn adapted(
    random: &mut Random,
    mut settings: Settings,
    model: &Model,
    subject: &Subject,
    folder: &Path,
) -> Result<Settings> {
    let n_layer = u64::from(subject.entry.n_layer);
    let (n_lora, has_vector) = random.weighted(&[
        ((1, false), 45),
        ((1, true), 25),
        ((0, true), 20),
        ((2, false), 10),
    ]);
    if n_lora > 0 {
        let rule = rule(random, model)?;
        make_adapter(&rule, model, &folder.join(&subject.entry.file))?;
        // Two of one rule: in which order llama.cpp applies several depends on where they lie in memory.
        for _ in 0..n_lora {
            settings = settings.with(&format!("--lora {rule}"));
        }
    }
    if has_vector {
        let first = 1 + random.below(n_layer.div_ceil(2));
        let last = first + random.below(n_layer);
        settings = settings.with(&format!("--control-vector {first},{last}"));
    }
    Ok(settings)
}

fn rule(random: &mut Random, model: &Model) -> Result<Rule> {
    let rule = Rule {
        rank: random.pick(&[8, 16, 64]),
        ty: random.pick(&[Type::F16, Type::F32]),
        targets: random.weighted(&[
            (Targets::Attention, 30),
            (Targets::Layers, 40),
            (Targets::All, 30),
        ]),
        every: random.weighted(&[(1, 75), (2, 15), (3, 10)]),
    };
    shrunk(rule, model)
}

/// The same, or of fewer layers or rows where that is more than [`ADAPTER_BYTES`].
pub fn shrunk(mut rule: Rule, model: &Model) -> Result<Rule> {
    while bytes(&rule, model)? > ADAPTER_BYTES {
        if rule.every <= model.hparams.n_layer() {
            rule.every *= 2;
        } else if rule.rank > 1 {
            rule.rank /= 2;
        } else {
            rule.targets = Targets::Attention;
            break;
        }
    }
    Ok(rule)
}

fn bytes(rule: &Rule, model: &Model) -> Result<u64> {
    let header = Header::parse(rule.header(model)).context("an adapter")?;
    Ok(header.file_bytes())
}

/// Writes an adapter where a case of `model_path` looks for it: a header with a hole behind it.
pub fn make_adapter(rule: &Rule, model: &Model, model_path: &Path) -> Result<PathBuf> {
    let path = PathBuf::from(format!("{}.{rule}", model_path.display()));
    make_sized(&rule.header(model), &path, bytes(rule, model)?)?;
    Ok(path)
}
