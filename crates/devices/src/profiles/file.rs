//! The file of profiles: where it is, how it is read, and how it is replaced in one step.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

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

fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

/// Puts `text` in the place of the file that `path` leads to, by links if need be: whenever the process or the machine dies,
/// the file is either the old one or the whole new one. On a file system that can write without a name (most of Linux's) no
/// part of a file lies beside it, and a whole one may, as `path.new`, by the next writer's time; elsewhere `path.new` may be
/// a part. What is not a regular file (a pipe, a terminal, `/dev/null`) is written into.
pub fn write_whole(path: &Path, text: &[u8]) -> io::Result<()> {
    match regular(path)? {
        Some(place) => replace(&place, text),
        None => OpenOptions::new().append(true).open(path)?.write_all(text),
    }
}

/// The regular file that `path` leads to, or where it will be; `None` where something else is there, which has no
/// place that another could be put in.
fn regular(path: &Path) -> io::Result<Option<PathBuf>> {
    match fs::metadata(path) {
        Ok(found) if !found.is_file() => return Ok(None),
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        // A link that leads round has just been refused; one that leads nowhere is followed as far as it goes.
        _ => (),
    }
    let mut place = path.to_owned();
    while let Ok(target) = fs::read_link(&place) {
        // `/dev/stdout` that a shell has sent into a file: whoever holds it open would go on writing into the old one.
        if place.starts_with("/proc") || place.starts_with("/dev/fd") {
            return Ok(None);
        }
        place = folder_of(&place).join(target);
    }
    Ok(Some(place))
}

fn replace(path: &Path, text: &[u8]) -> io::Result<()> {
    let folder = folder_of(path);
    // One name for all that never got there: the next writer starts it anew.
    let new = beside(path, NEW);
    write_new(&new, folder, text)?;
    if let Ok(old) = fs::metadata(path) {
        // Who may read the old one may read the new one.
        fs::set_permissions(&new, old.permissions())?;
    }
    fs::rename(&new, path)?;
    // The name itself is safe only when the folder is.
    match File::open(folder) {
        Ok(folder) => folder.sync_all(),
        Err(_) => Ok(()),
    }
}

/// Behind a file's own name while it is written: a name that nobody else gives, as what a killed writer left is removed.
const NEW: &str = "vramfit-new";

/// Written without a name, which it is given once it is whole.
#[cfg(target_os = "linux")]
fn write_new(new: &Path, folder: &Path, text: &[u8]) -> io::Result<()> {
    use rustix::fs::{AtFlags, CWD, Mode, OFlags};
    use std::os::fd::AsRawFd;
    let flags = OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC;
    let Ok(nameless) = rustix::fs::open(folder, flags, Mode::from_raw_mode(0o666)) else {
        // Not every file system can do that.
        return write_named(new, text);
    };
    let mut nameless = File::from(nameless);
    nameless.write_all(text)?;
    nameless.sync_all()?;
    let own = format!("/proc/self/fd/{}", nameless.as_raw_fd());
    let name = || rustix::fs::linkat(CWD, own.as_str(), CWD, new, AtFlags::SYMLINK_FOLLOW);
    match name() {
        Ok(()) => Ok(()),
        Err(rustix::io::Errno::EXIST) => {
            fs::remove_file(new)?;
            Ok(name()?)
        }
        // no /proc, say
        Err(_) => write_named(new, text),
    }
}

#[cfg(not(target_os = "linux"))]
fn write_new(new: &Path, _: &Path, text: &[u8]) -> io::Result<()> {
    write_named(new, text)
}

fn write_named(new: &Path, text: &[u8]) -> io::Result<()> {
    // What a killed writer left is no longer anybody's.
    match fs::remove_file(new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => (),
    }
    let mut file = File::create_new(new)?;
    file.write_all(text)?;
    file.sync_all()
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".");
    name.push(suffix);
    path.with_file_name(name)
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

    /// A link stays one, and what is no file is written into: nothing but the file itself is replaced.
    #[cfg(unix)]
    #[test]
    fn only_a_files_own_place_is_taken() {
        use std::os::unix::fs::{FileTypeExt, PermissionsExt, symlink};
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::create_dir(at("far")).unwrap();
        fs::write(at("far/file"), "old").unwrap();
        fs::set_permissions(at("far/file"), fs::Permissions::from_mode(0o640)).unwrap();
        symlink("far/file", at("link")).unwrap();
        symlink("link", at("link to a link")).unwrap();
        symlink("far/none yet", at("dangling")).unwrap();
        symlink("round", at("round")).unwrap();
        // somebody's own
        fs::write(at("far/file.new"), "theirs").unwrap();
        for (name, file) in [("link to a link", "far/file"), ("dangling", "far/none yet")] {
            write_whole(&at(name), b"new").unwrap();
            assert!(fs::symlink_metadata(at(name)).unwrap().is_symlink());
            assert_eq!(fs::read(at(file)).unwrap(), b"new");
        }
        assert_eq!(fs::read(at("far/file.new")).unwrap(), b"theirs");
        let mode = fs::metadata(at("far/file")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o640);
        write_whole(&at("round"), b"new").unwrap_err();
        write_whole(&at("far"), b"new").unwrap_err();

        let fifo = at("pipe");
        let made = std::process::Command::new("mkfifo").arg(&fifo).status();
        assert!(made.unwrap().success());
        let reader = std::thread::spawn({
            let fifo = fifo.clone();
            move || fs::read(fifo).unwrap()
        });
        symlink("pipe", at("link to a pipe")).unwrap();
        write_whole(&at("link to a pipe"), b"new").unwrap();
        assert_eq!(reader.join().unwrap(), b"new");
        assert!(fs::symlink_metadata(&fifo).unwrap().file_type().is_fifo());
        symlink("/dev/null", at("null")).unwrap();
        write_whole(&at("null"), b"new").unwrap();
        let null = fs::metadata("/dev/null").unwrap().file_type();
        assert!(null.is_char_device());

        // What is learned needs a file; two links to one take turns beside it.
        for name in ["pipe", "null", "far"] {
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
