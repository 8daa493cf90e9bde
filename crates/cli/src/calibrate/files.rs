//! What a calibration leaves: the report as text and JSON, the rows. Where they go is tried before anything is measured.

use std::path::{Path, PathBuf};

use vramfit::devices::{folder_of, write_whole};
use vramfit::report::one_line;
use vramfit_calibrate::rows;

use super::{Request, Results};

/// What is written last: each where it can be, and none over another.
pub(super) fn can_all_be_written(request: &Request, profiles: Option<&Path>) -> Result<(), String> {
    let mut places: Vec<(PathBuf, &str)> = Vec::new();
    let mut place = |path: &Path, flag| {
        let place = place_of(path);
        if let Some((_, other)) = places.iter().find(|(known, _)| *known == place) {
            return Err(format!(
                "{}: {flag} and {other} would be one file; name another",
                one_line(&path.to_string_lossy())
            ));
        }
        places.push((place, flag));
        Ok(())
    };
    if let Some(path) = profiles {
        place(path, "--profile")?;
    }
    if let Some(path) = request.rows.as_deref().filter(|path| is_file(path)) {
        can_be_written(path, "--rows FILE")?;
        place(path, "--rows")?;
    }
    if let Some(path) = request.report.as_deref().filter(|path| is_file(path)) {
        can_be_written(path, "--report FILE")?;
        let (text, json) = report_paths(path);
        place(&text, "--report (its text)")?;
        place(&json, "--report (its JSON)")?;
    }
    Ok(())
}

/// The file that `path` leads to, if it is there, else its name in the folder that is.
fn place_of(path: &Path) -> PathBuf {
    let in_folder = || {
        let folder = std::fs::canonicalize(folder_of(path)).ok()?;
        Some(folder.join(path.file_name()?))
    };
    std::fs::canonicalize(path)
        .ok()
        .or_else(in_folder)
        .unwrap_or_else(|| path.to_path_buf())
}

/// Tries the folder of a file that is written last; `else_say` names another.
pub(super) fn can_be_written(path: &Path, else_say: &str) -> Result<(), String> {
    let folder = folder_of(path);
    let tried = std::fs::create_dir_all(folder).and_then(|()| tempfile::tempfile_in(folder));
    tried.map(drop).map_err(|error| {
        format!(
            "{}: {error}; what is measured could not be kept there: name another place ({else_say})",
            one_line(&folder.to_string_lossy())
        )
    })
}

pub(super) fn write_out(request: &Request, results: &Results) -> Result<(), String> {
    // A pipe takes one report, at the end.
    if let Some(path) = request.report.as_deref().filter(|path| is_file(path)) {
        write_report(path, results)?;
    }
    match &request.rows {
        Some(path) => put(path, &rows(&results.comparisons)),
        None => Ok(()),
    }
}

/// It is one, or will be.
pub(super) fn is_file(path: &Path) -> bool {
    std::fs::metadata(path).map_or(true, |found| found.is_file())
}

pub(super) fn write_report(path: &Path, results: &Results) -> Result<(), String> {
    let json = serde_json::to_string_pretty(&results.documents).map_err(|e| e.to_string())?;
    let is_json = is_json(path);
    let (text_path, json_path) = report_paths(path);
    // Beside a pipe or a device there is no place for the other one.
    let is_file = is_file(path);
    if is_file || !is_json {
        put(&text_path, &results.text)?;
    }
    if is_file || is_json {
        put(&json_path, &format!("{json}\n"))?;
    }
    Ok(())
}

fn is_json(report: &Path) -> bool {
    report.extension().is_some_and(|e| e == "json")
}

/// Of its text and its JSON: one as it is named, the other beside it.
fn report_paths(path: &Path) -> (PathBuf, PathBuf) {
    match is_json(path) {
        true => (path.with_extension("txt"), path.to_path_buf()),
        false => {
            let mut beside = path.to_path_buf().into_os_string();
            beside.push(".json");
            (path.to_path_buf(), beside.into())
        }
    }
}

fn put(path: &Path, text: &str) -> Result<(), String> {
    write_whole(path, text.as_bytes())
        .map_err(|error| format!("{}: {error}", one_line(&path.to_string_lossy())))
}
