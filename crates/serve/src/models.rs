//! Which files clients may name, and what was read of them.

use crate::problem::Problem;
use lru::LruCache;
use std::io::ErrorKind;
use std::num::NonZeroUsize;
use std::path::{Component, Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;
use vramfit::{Model, Settings};

/// Models that are kept.
const MODELS: NonZeroUsize = NonZeroUsize::new(128).expect("not zero");
/// Answers that are kept; one has some KiB.
const ANSWERS: NonZeroUsize = NonZeroUsize::new(1024).expect("not zero");

/// Links from a name to a file, as many as Linux follows.
const MAX_LINKS: usize = 40;

/// Folders in which models may be.
#[derive(Clone, Debug)]
pub struct Folders {
    /// As given, made absolute, and where that really is.
    folders: Vec<(PathBuf, PathBuf)>,
}

impl Folders {
    /// Folders that are there.
    pub fn new(folders: &[PathBuf]) -> Result<Folders, (PathBuf, std::io::Error)> {
        let folder = |given: &PathBuf| {
            let failed = |error| (given.clone(), error);
            let real = given.canonicalize().map_err(failed)?;
            if !real.is_dir() {
                return Err(failed(ErrorKind::NotADirectory.into()));
            }
            let absolute = std::path::absolute(given).map_err(failed)?;
            Ok((absolute, real))
        };
        let folders = folders.iter().map(folder).collect::<Result<_, _>>()?;
        Ok(Folders { folders })
    }

    /// The file that `asked`, given as `field`, names: in the first folder that has it, or by its full path. Links are followed,
    /// and where they lead has to be in one of the folders, too.
    pub fn find(&self, field: &str, asked: &Path) -> Result<PathBuf, Problem> {
        if self.folders.is_empty() {
            return Err(Problem::forbidden(
                "the server was given no folder of models; start it with --models DIR",
            ));
        }
        if asked.as_os_str().is_empty() {
            return Err(Problem::invalid(format!("{field}: give a file")));
        }
        let shown = vramfit::report::one_line(&asked.to_string_lossy());
        let outside = || Problem::forbidden(format!("{shown}: outside the folders of --models"));
        let climbs = asked.components().any(|part| part == Component::ParentDir);
        if climbs || (asked.is_absolute() && !self.is_below(asked)) {
            return Err(outside());
        }
        for (folder, _) in &self.folders {
            let path = folder.join(asked);
            let real = match path.canonicalize() {
                Ok(real) => real,
                Err(error) if error.kind() == ErrorKind::PermissionDenied => {
                    return Err(Problem::forbidden(format!("{shown}: {error}")));
                }
                Err(_) => continue,
            };
            if !self.holds(&real) {
                return Err(outside());
            }
            if !real.is_file() {
                return Err(Problem::invalid(format!("{shown}: not a file")));
            }
            let Some(named) = self.named(&path, real) else {
                return Err(outside());
            };
            let leads_out =
                |part: PathBuf| part.canonicalize().is_ok_and(|part| !self.holds(&part));
            if parts(&named).into_iter().any(leads_out) {
                return Err(outside());
            }
            return Ok(named);
        }
        Err(Problem::not_found(format!(
            "{shown}: no such file below the folders of --models"
        )))
    }

    /// By which path the file is read: the other parts of a split model are found by the name of one, which in
    /// stores of blobs only a link has. `None` where that link is outside the folders.
    fn named(&self, asked: &Path, real: PathBuf) -> Option<PathBuf> {
        if split_name(&real).is_some() {
            return Some(real);
        }
        let Some(link) = part_link(asked) else {
            return Some(real);
        };
        let folder = link.parent()?.canonicalize().ok()?;
        let named = folder.join(link.file_name()?);
        self.holds(&named).then_some(named)
    }

    /// What a file that was found is called, however it was asked for: its path below the folder that it really is in,
    /// that of the first part of a split model.
    pub fn name(&self, found: &Path) -> String {
        let first = split_name(found).map(|(prefix, n)| part_name(prefix, 1, n));
        let found = first.map_or(found.to_owned(), |first| found.with_file_name(first));
        let mut folders = self.folders.iter();
        let below = folders.find_map(|(_, folder)| found.strip_prefix(folder).ok());
        below.unwrap_or(&found).to_string_lossy().into_owned()
    }

    /// Whether a file that is really there is in one of the folders.
    fn holds(&self, real: &Path) -> bool {
        self.folders
            .iter()
            .any(|(_, folder)| real.starts_with(folder))
    }

    fn is_below(&self, path: &Path) -> bool {
        let below = |folder: &PathBuf| path.starts_with(folder);
        self.folders
            .iter()
            .any(|(given, real)| below(given) || below(real))
    }

    /// The same for files that settings name: they are put in as they were found.
    pub fn find_beside(&self, settings: &mut Settings) -> Result<bool, Problem> {
        let mut any = false;
        for path in settings.files_mut() {
            *path = self.find("settings", path)?;
            any = true;
        }
        Ok(any)
    }
}

/// Whether a model is still what it was: when each of its files was changed, and its bytes.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Stamp(Vec<(Option<SystemTime>, u64)>);

/// What an answer depends on.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Question {
    /// The model's file.
    pub path: PathBuf,
    /// As it was.
    pub stamp: Stamp,
    /// GPUs and settings, as text.
    pub rest: String,
}

/// Headers that were read, and answers that do not change.
pub struct Cache {
    models: Mutex<LruCache<PathBuf, (Stamp, Arc<Model>)>>,
    answers: Mutex<LruCache<Question, Arc<[u8]>>>,
    /// Headers that had to be read, and those that had not.
    pub read: AtomicU64,
    /// Headers that were there.
    pub kept: AtomicU64,
    /// Answers that were there.
    pub answered: AtomicU64,
}

impl Default for Cache {
    fn default() -> Cache {
        Cache {
            models: Mutex::new(LruCache::new(MODELS)),
            answers: Mutex::new(LruCache::new(ANSWERS)),
            read: AtomicU64::new(0),
            kept: AtomicU64::new(0),
            answered: AtomicU64::new(0),
        }
    }
}

fn locked<T>(lock: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    // A cache is whole after every step.
    lock.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Cache {
    /// The model in the file at `path`, read again where it has changed.
    pub fn model(&self, path: &Path) -> Result<(Stamp, Arc<Model>), Problem> {
        let stamp = stamp(path)?;
        if let Some((read, model)) = locked(&self.models).get(path)
            && *read == stamp
        {
            self.kept.fetch_add(1, Ordering::Relaxed);
            return Ok((stamp, Arc::clone(model)));
        }
        self.read.fetch_add(1, Ordering::Relaxed);
        let model = Arc::new(vramfit::open(path)?);
        let entry = (stamp.clone(), Arc::clone(&model));
        locked(&self.models).put(path.to_owned(), entry);
        Ok((stamp, model))
    }

    /// The answer to `question`, if it was given before.
    pub fn answer(&self, question: &Question) -> Option<Arc<[u8]>> {
        let answer = locked(&self.answers).get(question).cloned();
        if answer.is_some() {
            self.answered.fetch_add(1, Ordering::Relaxed);
        }
        answer
    }

    /// Keeps an answer.
    pub fn keep(&self, question: Question, answer: &Arc<[u8]>) {
        locked(&self.answers).put(question, Arc::clone(answer));
    }
}

/// The model's files as they are now.
fn stamp(path: &Path) -> Result<Stamp, Problem> {
    let shown = || vramfit::report::one_line(&path.to_string_lossy());
    let one = |part: PathBuf| {
        let metadata = part.metadata()?;
        Ok((metadata.modified().ok(), metadata.len()))
    };
    let all: std::io::Result<_> = parts(path).into_iter().map(one).collect();
    let failed = |error: std::io::Error| Problem::not_found(format!("{}: {error}", shown()));
    Ok(Stamp(all.map_err(failed)?))
}

/// The files of the model at `path`: those of a split one that are there, up to the first that is missing, go
/// by their numbers.
fn parts(path: &Path) -> Vec<PathBuf> {
    let Some((prefix, count)) = split_name(path) else {
        return vec![path.to_owned()];
    };
    let part = |no| path.with_file_name(part_name(prefix, no, count));
    (1..=count)
        .map(part)
        .take_while(|part| part.exists())
        .collect()
}

fn part_name(prefix: &str, no: u16, count: u16) -> String {
    format!("{prefix}-{no:05}-of-{count:05}.gguf")
}

/// The first of the links from `path` on whose name is that of a part.
fn part_link(path: &Path) -> Option<PathBuf> {
    let mut path = path.to_owned();
    for _ in 0..MAX_LINKS {
        let target = path.read_link().ok()?;
        if split_name(&path).is_some() {
            return Some(path);
        }
        path = path.parent()?.join(target);
    }
    None
}

/// `NAME` and `N` of `NAME-00001-of-0000N.gguf`.
fn split_name(path: &Path) -> Option<(&str, u16)> {
    let name = path.file_name()?.to_str()?.strip_suffix(".gguf")?;
    let (name, count) = name.rsplit_once("-of-")?;
    let (prefix, no) = name.rsplit_once('-')?;
    let number = |text: &str| {
        let is_five = text.len() == 5 && text.bytes().all(|byte| byte.is_ascii_digit());
        text.parse::<u16>().ok().filter(|_| is_five)
    };
    let (no, count) = (number(no)?, number(count)?);
    (1..=count).contains(&no).then_some((prefix, count))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn split_models_are_known_by_their_names() {
        let of =
            |name: &str| split_name(Path::new(name)).map(|(prefix, n)| (prefix.to_string(), n));
        assert_eq!(
            of("d/a-b-00002-of-00003.gguf"),
            Some(("a-b".to_string(), 3))
        );
        for other in [
            "a.gguf",
            "a-00004-of-00003.gguf",
            "a-00000-of-00003.gguf",
            "a-1-of-3.gguf",
            "a-00001-of-00003.bin",
            "a-+0001-of-00003.gguf",
            "a-99999-of-99999.gguf",
        ] {
            assert_eq!(of(other), None, "{other}");
        }
    }
}
