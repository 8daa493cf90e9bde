//! A file that is replaced whole or not at all.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// Puts `text` in the place of the file that `path` leads to, by links if need be: whenever the process or the machine dies,
/// the file is either the old one or the whole new one. On a file system that can write without a name (most of Linux's) no
/// part of a file lies beside it, and a whole one may, as `path.vramfit-new`, by the next writer's time; elsewhere `path.vramfit-new` may be
/// a part. What is not a regular file (a pipe, a terminal, `/dev/null`) is written into.
pub fn write_whole(path: &Path, text: &[u8]) -> io::Result<()> {
    match regular(path)? {
        Some(place) => replace(&place, text),
        None => OpenOptions::new().append(true).open(path)?.write_all(text),
    }
}

/// The regular file that `path` leads to, or where it will be; `None` where something else is there, which has no
/// place that another could be put in.
pub(super) fn regular(path: &Path) -> io::Result<Option<PathBuf>> {
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
pub(super) const NEW: &str = "vramfit-new";

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

pub(super) fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".");
    name.push(suffix);
    path.with_file_name(name)
}

/// The folder that `path` is in; `.` for a bare name.
pub fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    /// A link stays one, and what is no file is written into: nothing but the file itself is replaced.
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
    }
}
