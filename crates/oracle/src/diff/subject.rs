//! The models of a session: header-only files, made loadable in a folder of their own.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use vramfit_arch::Model;
use vramfit_gguf::Header;

use crate::common::truth;
use crate::error::{Context, Error, Result};
use crate::models::{self, Entry};

/// One model, as the engine and as we see it.
pub struct Subject {
    /// As a person would name it: below the repository where it lies there.
    pub shown: String,
    /// Its facts; `file` is its name in the session's folder.
    pub entry: Entry,
    /// Our model, or why there is none.
    pub model: std::result::Result<Model, String>,
}

impl Subject {
    /// What we say to a case, in the words of the truth table.
    pub fn estimate(&self, row: &truth::Row) -> String {
        let model = match &self.model {
            Ok(model) => model,
            Err(error) => return format!("error: {error}"),
        };
        catch_unwind(AssertUnwindSafe(|| row.estimate(model)))
            .unwrap_or_else(|_| "panic: see above".to_owned())
    }
}

/// The models named, or all of `fixtures/gguf`.
pub fn all(named: &[PathBuf], folder: &Path) -> Result<Vec<Subject>> {
    let fixtures = models::fixtures().join("gguf");
    let paths = if named.is_empty() {
        let mut found = Vec::new();
        below(&fixtures, &mut found)?;
        found.sort();
        found
    } else {
        let existing = |path: &PathBuf| {
            let places = [path.clone(), fixtures.join(path)];
            let found = places.into_iter().find(|place| place.is_file());
            found.context(path.display())
        };
        named.iter().map(existing).collect::<Result<_>>()?
    };
    let load = |(i, path): (usize, &PathBuf)| one(path, &fixtures, folder, i);
    paths.iter().enumerate().map(load).collect()
}

fn below(folder: &Path, found: &mut Vec<PathBuf>) -> Result<()> {
    for item in fs::read_dir(folder).context(folder.display())? {
        let path = item.context(folder.display())?.path();
        if path.is_dir() {
            below(&path, found)?;
        } else if path.extension().is_some_and(|e| e == "gguf") {
            found.push(path);
        }
    }
    Ok(())
}

fn one(path: &Path, fixtures: &Path, folder: &Path, number: usize) -> Result<Subject> {
    let header = Header::open(path).map_err(|e| Error::new(e.to_string()))?;
    // A case's random stream depends on this name; as the truth table has it for the fixtures.
    let name = path
        .strip_prefix(fixtures)
        .ok()
        .or(path.file_name().map(Path::new));
    let mut file = name.context(path.display())?.to_string_lossy().into_owned();
    if folder.join(&file).exists() {
        file = format!("{number}-{}", file.replace('/', "-"));
    }
    let copy = folder.join(&file);
    if let Some(parent) = copy.parent() {
        fs::create_dir_all(parent).context(parent.display())?;
    }
    models::make_one_sparse(path, &copy, header.file_bytes())?;
    let load = || Model::load(&header).map_err(|error| error.to_string());
    let model = catch_unwind(AssertUnwindSafe(load)).unwrap_or(Err("panic: see above".to_owned()));
    let arch = header.architecture().unwrap_or("?").to_owned();
    let n_layer = header
        .get(&format!("{arch}.block_count"))
        .and_then(|v| v.as_u64());
    Ok(Subject {
        shown: match path.strip_prefix(fixtures) {
            Ok(name) => format!("fixtures/gguf/{}", name.display()),
            Err(_) => path.display().to_string(),
        },
        entry: Entry {
            file,
            arch,
            n_layer: n_layer.and_then(|n| u32::try_from(n).ok()).unwrap_or(0),
            file_bytes: header.file_bytes(),
        },
        model,
    })
}
