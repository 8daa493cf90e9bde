//! The file of profiles: where it is, how it is read, and how it is replaced in one step.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::whole::{beside, folder_of, regular, write_whole};
use super::{Profile, Profiles};

/// Names a file of profiles; empty for none at all.
pub const PROFILES_VARIABLE: &str = "VRAMFIT_PROFILES";

const FORMAT: &str = "vramfit overhead profiles";
const VERSION: u64 = 1;
/// A file of profiles has some KiB.
const MOST_BYTES: u64 = 4 << 20;
/// No card's CUDA takes this much.
const MOST_OVERHEAD_BYTES: u64 = 16 << 30;

/// Why profiles cannot be read or written.
#[non_exhaustive]
#[derive(Debug, thiserror::Error)]
pub enum ProfilesError {
    /// The file is not there, and was asked for by name.
    #[error("{}: no such file of profiles; `estimate calibrate` makes it", path.display())]
    Missing {
        /// The file.
        path: PathBuf,
    },
    /// The system refuses.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is a pipe, a device or a folder, and what is learned replaces a file.
    #[error("{}: not a regular file; what is learned is kept in one (--profile FILE)", path.display())]
    NotRegular {
        /// What it is called.
        path: PathBuf,
    },
    /// It is not a file of profiles.
    #[error(
        "{}: not a file of overhead profiles ({reason}); mend it, or move it away and calibrate again",
        path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// It is of another version of vramfit.
    #[error(
        "{}: version {version} of the profiles' format, this vramfit reads version {VERSION}; use the vramfit that \
         wrote it, or another file (--profile FILE)",
        path.display()
    )]
    Version {
        /// The file.
        path: PathBuf,
        /// The version found.
        version: u64,
    },
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    format: String,
    version: u64,
    profiles: Vec<Profile>,
}

/// Just enough to tell another version from a damaged file.
#[derive(Deserialize)]
struct Heading {
    format: String,
    version: u64,
}

/// Where profiles are kept: `given` on the command line, else [`PROFILES_VARIABLE`], else
/// `vramfit/overhead.json` in the user's data folder (`XDG_DATA_HOME`, `~/.local/share`). `None` where the variable is
/// empty or no folder is known. The flag says whether the command line names the file, which then has to be there.
pub fn profiles_path(
    given: Option<&Path>,
    env: &dyn Fn(&str) -> Option<OsString>,
) -> Option<(PathBuf, bool)> {
    if let Some(path) = given {
        return Some((path.to_owned(), true));
    }
    if let Some(path) = env(PROFILES_VARIABLE) {
        return (!path.is_empty()).then(|| (path.into(), false));
    }
    let absolute = |name: &str| env(name).map(PathBuf::from).filter(|p| p.is_absolute());
    let data = absolute("XDG_DATA_HOME")
        .or_else(|| absolute("HOME").map(|home| home.join(".local/share")))?;
    Some((data.join("vramfit/overhead.json"), false))
}

impl Profiles {
    /// The profiles in `path`; an error where there is no such file.
    pub fn read(path: &Path) -> Result<Profiles, ProfilesError> {
        Self::read_if_there(path)?.ok_or_else(|| ProfilesError::Missing {
            path: path.to_owned(),
        })
    }

    /// The profiles in `path`; `None` where there is no such file.
    pub fn read_if_there(path: &Path) -> Result<Option<Profiles>, ProfilesError> {
        let failed = |source| ProfilesError::Io {
            path: path.to_owned(),
            source,
        };
        let file = match File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed(error)),
        };
        let mut text = Vec::new();
        let n = file
            .take(MOST_BYTES + 1)
            .read_to_end(&mut text)
            .map_err(failed)?;
        if n as u64 > MOST_BYTES {
            return Err(damaged(path, format!("more than {MOST_BYTES} bytes")));
        }
        parse(path, &text).map(Some)
    }

    /// Reads `path`, lets `change` have what is in it, and puts the result in its place: the file is either the old one
    /// or the whole new one, whenever the process or the machine dies. Two at once take turns.
    pub fn update(
        path: &Path,
        change: impl FnOnce(&mut Profiles),
    ) -> Result<Profiles, ProfilesError> {
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |source| ProfilesError::Io { path, source }
        };
        // The lock is beside the file itself, whichever link leads there.
        let Some(place) = regular(path).map_err(failed(path))? else {
            return Err(ProfilesError::NotRegular {
                path: path.to_owned(),
            });
        };
        let path = place.as_path();
        let folder = folder_of(path);
        fs::create_dir_all(folder).map_err(failed(folder))?;
        let _turn = lock(path).map_err(failed(path))?;
        let mut profiles = Self::read_if_there(path)?.unwrap_or_default();
        change(&mut profiles);
        write_whole(path, &text(&profiles, path)?).map_err(failed(path))?;
        Ok(profiles)
    }
}

fn text(profiles: &Profiles, path: &Path) -> Result<Vec<u8>, ProfilesError> {
    let document = Document {
        format: FORMAT.to_owned(),
        version: VERSION,
        profiles: profiles.entries.clone(),
    };
    let mut text =
        serde_json::to_vec_pretty(&document).map_err(|e| damaged(path, e.to_string()))?;
    text.push(b'\n');
    Ok(text)
}

/// Held until it is dropped, or the process ends.
fn lock(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(beside(path, "lock"))?;
    #[cfg(unix)]
    rustix::fs::flock(&file, rustix::fs::FlockOperation::LockExclusive)?;
    Ok(file)
}

fn damaged(path: &Path, reason: String) -> ProfilesError {
    ProfilesError::Damaged {
        path: path.to_owned(),
        reason,
    }
}

fn parse(path: &Path, text: &[u8]) -> Result<Profiles, ProfilesError> {
    let wrong = |error: serde_json::Error| damaged(path, error.to_string());
    let heading: Heading = serde_json::from_slice(text).map_err(wrong)?;
    if heading.format != FORMAT {
        return Err(damaged(path, format!("its format is '{}'", heading.format)));
    }
    if heading.version != VERSION {
        return Err(ProfilesError::Version {
            path: path.to_owned(),
            version: heading.version,
        });
    }
    let document: Document = serde_json::from_slice(text).map_err(wrong)?;
    let wrong = |profile: &Profile, reason| damaged(path, format!("{}: {reason}", profile.card));
    for profile in &document.profiles {
        if let Some(reason) = nonsense(profile) {
            return Err(wrong(profile, reason));
        }
    }
    Profiles::new(document.profiles)
        .map_err(|profile| wrong(&profile, "the same card, driver and build twice"))
}

fn nonsense(profile: &Profile) -> Option<&'static str> {
    let empty = [&profile.card, &profile.driver, &profile.build];
    if empty.into_iter().any(|text| text.trim().is_empty()) {
        return Some("a name is empty");
    }
    if profile.low_bytes > profile.high_bytes {
        return Some("low_bytes is above high_bytes");
    }
    if profile.high_bytes == 0 {
        return Some("high_bytes is 0, and CUDA takes something");
    }
    if profile.high_bytes > MOST_OVERHEAD_BYTES {
        return Some("more than 16 GiB");
    }
    (profile.runs == 0).then_some("no run is behind it")
}

#[cfg(test)]
mod tests {
    use super::super::whole::NEW;
    use super::*;

    fn seen(bytes: u64) -> Profile {
        Profile {
            card: "Tesla K80".to_owned(),
            driver: "470.256.02".to_owned(),
            build: "llama.cpp".to_owned(),
            with_cublas: true,
            low_bytes: bytes,
            high_bytes: bytes,
            runs: 1,
        }
    }

    #[test]
    fn what_is_written_is_read_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deep/er/overhead.json");
        assert_eq!(Profiles::read_if_there(&path).unwrap(), None);
        let missing = Profiles::read(&path).unwrap_err().to_string();
        assert!(
            missing.contains("`estimate calibrate` makes it"),
            "{missing}"
        );
        Profiles::update(&path, |p| p.learn(seen(170 << 20)).unwrap()).unwrap();
        // what a killed writer left does not matter
        fs::write(beside(&path, NEW), "{\"format\": \"vra").unwrap();
        let profiles = Profiles::update(&path, |p| p.learn(seen(166 << 20)).unwrap()).unwrap();
        assert_eq!(Profiles::read(&path).unwrap(), profiles);
        let [only] = profiles.entries() else {
            panic!("{profiles:?}");
        };
        assert_eq!((only.low_bytes, only.high_bytes), (166 << 20, 170 << 20));
        assert_eq!(only.runs, 2);
        assert!(!beside(&path, NEW).exists());
    }

    /// What is learned needs a file; two links to one take turns beside it.
    #[cfg(unix)]
    #[test]
    fn links_to_one_file_share_its_lock() {
        use std::os::unix::fs::symlink;
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::create_dir(at("far")).unwrap();
        symlink("/dev/null", at("null")).unwrap();
        for name in ["null", "far"] {
            let refused = Profiles::update(&at(name), |_| ()).unwrap_err();
            assert!(
                refused.to_string().contains("not a regular file"),
                "{refused}"
            );
        }
        symlink("far/overhead.json", at("profiles")).unwrap();
        Profiles::update(&at("profiles"), |p| p.learn(seen(170 << 20)).unwrap()).unwrap();
        assert!(fs::symlink_metadata(at("profiles")).unwrap().is_symlink());
        assert!(at("far/overhead.json.lock").exists() && !at("profiles.lock").exists());
        assert!(!Profiles::read(&at("far/overhead.json")).unwrap().is_empty());
    }

    #[test]
    fn damaged_files_are_clear_errors_and_stay_as_they_are() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("overhead.json");
        Profiles::update(&path, |p| p.learn(seen(170 << 20)).unwrap()).unwrap();
        let good = fs::read_to_string(&path).unwrap();
        let check = |text: String, words: &str| {
            fs::write(&path, &text).unwrap();
            let error = Profiles::read(&path).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
            assert!(error.contains("overhead.json"), "{error}");
            Profiles::update(&path, |_| ()).unwrap_err();
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
        };
        for end in 0..good.trim_end().len() {
            fs::write(&path, &good[..end]).unwrap();
            Profiles::read(&path).unwrap_err();
        }
        check(
            good.replace("\"version\": 1", "\"version\": 2"),
            "reads version 1",
        );
        check(
            good.replace(FORMAT, "shopping list"),
            "its format is 'shopping list'",
        );
        check(
            good.replace("\"runs\": 1", "\"runs\": 0"),
            "no run is behind it",
        );
        check(good.replace("\"runs\": 1", "\"runs\": -1"), "mend it");
        check(good.replace("Tesla K80", " "), "a name is empty");
        let high = format!("\"high_bytes\": {}", 170 << 20);
        check(
            good.replace(&high, "\"high_bytes\": 5"),
            "low_bytes is above high_bytes",
        );
        let both = good.replace(&format!("{}", 170 << 20), "0");
        check(
            both.replace(&format!("{}", 166 << 20), "0"),
            "high_bytes is 0",
        );
        check(
            good.replace("\"runs\": 1", "\"runs\": 1, \"more\": 1"),
            "unknown field",
        );
        let one = good.find("    {").unwrap()..good.rfind("  ]").unwrap();
        let twice = format!("{},{}", &good[one.clone()].trim_end(), &good[one.clone()]);
        check(
            good.replace(&good[one], &twice),
            "the same card, driver and build twice",
        );
        check(
            "x".repeat(MOST_BYTES as usize + 1),
            "more than 4194304 bytes",
        );
    }

    #[test]
    fn the_file_is_found() {
        let check = |given: Option<&str>, env: &[(&str, &str)], expected: Option<(&str, bool)>| {
            let env = |name: &str| {
                let found = env.iter().find(|(n, _)| *n == name);
                found.map(|(_, value)| OsString::from(value))
            };
            let found = profiles_path(given.map(Path::new), &env);
            let expected = expected.map(|(path, named)| (PathBuf::from(path), named));
            assert_eq!(found, expected);
        };
        let home = ("HOME", "/home/u");
        let in_home = "/home/u/.local/share/vramfit/overhead.json";
        check(None, &[home], Some((in_home, false)));
        check(
            None,
            &[home, ("XDG_DATA_HOME", "relative")],
            Some((in_home, false)),
        );
        let data = ("XDG_DATA_HOME", "/d");
        check(
            None,
            &[home, data],
            Some(("/d/vramfit/overhead.json", false)),
        );
        check(
            None,
            &[home, ("VRAMFIT_PROFILES", "p.json")],
            Some(("p.json", false)),
        );
        check(None, &[home, ("VRAMFIT_PROFILES", "")], None);
        check(
            Some("f.json"),
            &[home, ("VRAMFIT_PROFILES", "")],
            Some(("f.json", true)),
        );
        check(None, &[], None);
    }
}
