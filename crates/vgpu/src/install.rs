//! Puts the library where a child process finds it.

use std::ffi::OsString;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;
use thiserror::Error;

/// The built library, as cargo names it.
const LIBRARY: &str = "libvramfit_vgpu.so";

/// The names that programs load it by.
const NAMES: [&str; 4] = [
    "libcuda.so.1",
    "libnvidia-ml.so.1",
    "libcudart.so.13",
    "libcublas.so.13",
];

/// cudarc and others also try the name without a version.
const MORE_NAMES: [&str; 2] = ["libcuda.so", "libnvidia-ml.so"];

/// Why the library could not be installed.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum InstallError {
    /// Cargo builds it beside the tests and programs that depend on this crate.
    #[error("{LIBRARY} is in none of {0:?}: build it with `cargo build -p vramfit-vgpu`")]
    NotBuilt(Vec<PathBuf>),
    /// A folder or link could not be made.
    #[error("{path}: {source}")]
    Io {
        /// What was to be made or read.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

/// A folder with the imaginary libraries. A temporary one is removed with this value.
///
/// ```no_run
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let gpus = vramfit_vgpu::Install::new()?;
/// let mut child = std::process::Command::new("nvidia-smi");
/// gpus.play(&mut child, "2*Tesla K80:11441MiB:3.7");
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Install {
    folder: PathBuf,
    _temporary: Option<TempDir>,
}

impl Install {
    /// Links in a temporary folder.
    ///
    /// # Errors
    ///
    /// Where the library is not built, or the folder cannot be written.
    pub fn new() -> Result<Self, InstallError> {
        let temporary = TempDir::new().map_err(|source| InstallError::Io {
            path: std::env::temp_dir(),
            source,
        })?;
        let mut install = Install::links(temporary.path())?;
        install._temporary = Some(temporary);
        Ok(install)
    }

    /// Links in a folder of the caller's.
    ///
    /// # Errors
    ///
    /// As [`Install::new`].
    pub fn links(folder: &Path) -> Result<Self, InstallError> {
        let library = Install::library()?;
        for name in NAMES.iter().chain(&MORE_NAMES) {
            link(&library, &folder.join(name))?;
        }
        Ok(Install {
            folder: folder.to_owned(),
            _temporary: None,
        })
    }

    /// The built library: in the `deps` folder beside this program, where cargo puts what a dependency makes (a copy outside
    /// of it may be older), or right beside it.
    ///
    /// # Errors
    ///
    /// Where it is not built.
    pub fn library() -> Result<PathBuf, InstallError> {
        let program = std::env::current_exe().map_err(|source| InstallError::Io {
            path: PathBuf::from("this program"),
            source,
        })?;
        let folder = program.parent().unwrap_or(Path::new("."));
        let folders: Vec<PathBuf> = [Some(folder), folder.parent()]
            .into_iter()
            .flatten()
            .flat_map(|folder| [folder.join("deps"), folder.to_owned()])
            .collect();
        let found = folders
            .iter()
            .map(|folder| folder.join(LIBRARY))
            .find(|path| path.is_file());
        found.ok_or(InstallError::NotBuilt(folders))
    }

    /// The folder with the links.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// `LD_LIBRARY_PATH` for a child: this folder, then what this process has.
    pub fn library_path(&self) -> OsString {
        let mut path = self.folder.clone().into_os_string();
        if let Some(more) = std::env::var_os("LD_LIBRARY_PATH").filter(|more| !more.is_empty()) {
            path.push(":");
            path.push(more);
        }
        path
    }

    /// Has a command find these GPUs (`name:SIZE:CC[:key=value]..,..`) and nothing of this process's own settings.
    pub fn play<'a>(&self, command: &'a mut Command, gpus: &str) -> &'a mut Command {
        for (name, _) in std::env::vars_os() {
            let text = name.to_string_lossy();
            if text.starts_with("VGPU")
                || text == "CUDA_VISIBLE_DEVICES"
                || text == "CUDA_DEVICE_ORDER"
            {
                command.env_remove(&name);
            }
        }
        command
            .env("LD_LIBRARY_PATH", self.library_path())
            .env("VGPU", gpus)
    }
}

fn link(to: &Path, at: &Path) -> Result<(), InstallError> {
    if at.symlink_metadata().is_ok() {
        std::fs::remove_file(at).map_err(|source| InstallError::Io {
            path: at.to_owned(),
            source,
        })?;
    }
    symlink(to, at).map_err(|source| InstallError::Io {
        path: at.to_owned(),
        source,
    })
}
