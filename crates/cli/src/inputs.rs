//! Which models are meant: files, and folders of them.

use std::fs;
use std::path::{Path, PathBuf};

/// The models of a call.
#[derive(Debug, PartialEq, Eq)]
pub struct Inputs {
    /// In the order given; those of a folder by name.
    pub models: Vec<PathBuf>,
    /// One line a model, also if there is only one.
    pub many: bool,
}

/// Expands folders: their `*.gguf`, not those of folders within, and of a split model the first part.
pub fn inputs(paths: &[PathBuf]) -> Result<Inputs, String> {
    let mut models = Vec::new();
    let mut many = paths.len() > 1;
    for path in paths {
        if let Some(name) = misplaced_command(path) {
            return Err(format!(
                "{name} is a command and comes first: `estimate {name} ..` (a model of that name: ./{name})"
            ));
        }
        // Of several each is told where its turn comes.
        if let (1, Err(error)) = (paths.len(), fs::metadata(path)) {
            let shown = vramfit::report::one_line(&path.to_string_lossy());
            return Err(format!("{shown}: {error}"));
        }
        if path.is_dir() {
            many = true;
            models.extend(folder(path)?);
        } else {
            models.push(path.clone());
        }
    }
    Ok(Inputs { models, many })
}

/// A command's name behind flags or models, where it is read as a file that does not exist.
fn misplaced_command(path: &Path) -> Option<&str> {
    const COMMANDS: [&str; 9] = [
        "calibrate",
        "explain",
        "compare",
        "strip",
        "gpus",
        "serve",
        "schema",
        "completions",
        "man",
    ];
    let name = path.to_str().filter(|name| COMMANDS.contains(name))?;
    (!path.exists()).then_some(name)
}

fn folder(path: &Path) -> Result<Vec<PathBuf>, String> {
    let shown = vramfit::report::one_line(&path.to_string_lossy());
    let failed = |error: std::io::Error| format!("{shown}: {error}");
    let mut models = Vec::new();
    for entry in fs::read_dir(path).map_err(failed)? {
        let file = entry.map_err(failed)?.path();
        let is_gguf = file
            .extension()
            .is_some_and(|extension| extension.eq_ignore_ascii_case("gguf"));
        if is_gguf && !file.is_dir() && !is_later_part(&file) {
            models.push(file);
        }
    }
    if models.is_empty() {
        return Err(format!("{shown}: no *.gguf in this folder"));
    }
    models.sort();
    Ok(models)
}

/// `NAME-00002-of-00003.gguf`.
fn is_later_part(path: &Path) -> bool {
    let stem = path.file_stem().map(|stem| stem.to_string_lossy());
    let stem = stem.unwrap_or_default();
    let number = |text: &str| {
        let is = text.len() == 5 && text.bytes().all(|b| b.is_ascii_digit());
        is.then(|| text.parse::<u32>().ok()).flatten()
    };
    let Some((before, count)) = stem.rsplit_once("-of-") else {
        return false;
    };
    let no = before.rsplit_once('-').and_then(|(_, no)| number(no));
    matches!((no, number(count)), (Some(no), Some(_)) if no > 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_its_models_once_each() {
        let folder = tempfile::tempdir().unwrap();
        for name in [
            "b.gguf",
            "a-00002-of-00002.gguf",
            "a-00001-of-00002.gguf",
            "readme.md",
            "part-of-it.gguf",
        ] {
            fs::write(folder.path().join(name), "").unwrap();
        }
        fs::create_dir(folder.path().join("more.gguf")).unwrap();
        let paths = [folder.path().to_owned()];
        let inputs = inputs(&paths).unwrap();
        let names: Vec<_> = inputs
            .models
            .iter()
            .map(|path| path.file_name().unwrap().to_str().unwrap())
            .collect();
        assert_eq!(
            names,
            ["a-00001-of-00002.gguf", "b.gguf", "part-of-it.gguf"]
        );
        assert!(inputs.many);
    }
}
