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
    /// Whether we know its graph; else there are bounds of its memory alone.
    pub fn is_known(&self) -> bool {
        self.model.as_ref().is_ok_and(Model::is_known)
    }

    /// The model, if only bounds of its memory are known.
    pub fn bounded(&self) -> Option<&Model> {
        self.model.as_ref().ok().filter(|model| !model.is_known())
    }

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

/// How a header becomes a model: as what it is, or as if nobody knew its architecture.
pub type Load = fn(&Header) -> vramfit_arch::Result<Model>;

/// Folders of files that go beside a model, or are of another engine: other commands run them.
const NOT_ALONE: [&str; 3] = ["drafts", "mmproj", "ollama"];

/// The models named, or all of `fixtures/gguf` that are models by themselves.
pub fn all(named: &[PathBuf], folder: &Path, load: Load) -> Result<Vec<Subject>> {
    let fixtures = models::fixtures().join("gguf");
    let paths = if named.is_empty() {
        let mut found = Vec::new();
        below(&fixtures, &mut found)?;
        let is_alone = |path: &PathBuf| {
            !NOT_ALONE
                .iter()
                .any(|no| path.starts_with(fixtures.join(no)))
        };
        found.retain(is_alone);
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
    let paths = paths.iter().enumerate();
    paths
        .map(|(i, path)| {
            let (file, shown) = names(path, &fixtures, folder, i)?;
            Subject::new(path, folder, file, shown, load)
        })
        .collect()
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

/// Of the copy below the session's folder, and for a reader.
fn names(path: &Path, fixtures: &Path, folder: &Path, number: usize) -> Result<(String, String)> {
    // A case's random stream depends on this name; as the truth table has it for the fixtures.
    let name = path
        .strip_prefix(fixtures)
        .ok()
        .or(path.file_name().map(Path::new));
    let mut file = name.context(path.display())?.to_string_lossy().into_owned();
    if folder.join(&file).exists() {
        file = format!("{number}-{}", file.replace('/', "-"));
    }
    let shown = match path.strip_prefix(fixtures) {
        Ok(name) => format!("fixtures/gguf/{}", name.display()),
        Err(_) => path.display().to_string(),
    };
    Ok((file, shown))
}

impl Subject {
    /// The model of the header at `path`, made loadable as `folder/file`.
    pub fn new(
        path: &Path,
        folder: &Path,
        file: String,
        shown: String,
        load: Load,
    ) -> Result<Self> {
        let header = Header::open(path).map_err(|e| Error::new(e.to_string()))?;
        let copy = folder.join(&file);
        if let Some(parent) = copy.parent() {
            fs::create_dir_all(parent).context(parent.display())?;
        }
        models::make_one_sparse(path, &copy, header.file_bytes())?;
        let load = || load(&header).map_err(|error| error.to_string());
        let panicked = || Err("panic: see above".to_owned());
        let model = catch_unwind(AssertUnwindSafe(load)).unwrap_or_else(|_| panicked());
        let arch = header.architecture().unwrap_or("?").to_owned();
        let n_layer = header.get(&format!("{arch}.block_count"));
        let n_layer = n_layer.and_then(|v| u32::try_from(v.as_u64()?).ok());
        Ok(Self {
            shown,
            entry: Entry {
                file,
                arch,
                n_layer: n_layer.unwrap_or(0),
                file_bytes: header.file_bytes(),
            },
            model,
        })
    }
}
