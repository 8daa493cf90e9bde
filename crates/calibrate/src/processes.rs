//! Processes below this one, by `/proc`.

use std::collections::{BTreeMap, BTreeSet};
use std::process::{Child, ExitStatus};
use std::time::{Duration, Instant};
use std::{fs, io, thread};

/// Between two looks at whether a process has ended.
const STEP: Duration = Duration::from_millis(5);

/// How `child` ended, or none where it has not within `time`: a process that is stuck in the driver does not end at all,
/// killed or not.
pub fn wait_for(child: &mut Child, time: Duration) -> io::Result<Option<ExitStatus>> {
    let start = Instant::now();
    loop {
        let ended = child.try_wait()?;
        if ended.is_some() || start.elapsed() >= time {
            return Ok(ended);
        }
        thread::sleep(STEP);
    }
}

/// `root` and all processes below it.
pub fn tree(root: u32) -> BTreeSet<u32> {
    let all = all();
    below(BTreeSet::from([root]), &all)
}

/// What `leader` has started, also when it is gone: processes of the session that it has made or with `mark` in their
/// environment, and all below them. None where no such process is below this one.
pub fn left_by(leader: u32, mark: &str) -> BTreeSet<u32> {
    let all = all();
    let own = below(BTreeSet::from([std::process::id()]), &all);
    let is_of_it =
        |p: &&Process| own.contains(&p.pid) && (p.session == leader || is_marked(p.pid, mark));
    let first = all.iter().filter(is_of_it).map(|p| p.pid).collect();
    below(first, &all)
}

fn is_marked(pid: u32, mark: &str) -> bool {
    let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
    environment
        .split(|&byte| byte == 0)
        .any(|entry| entry == mark.as_bytes())
}

fn below(mut found: BTreeSet<u32>, all: &[Process]) -> BTreeSet<u32> {
    let mut children: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
    for p in all {
        children.entry(p.parent).or_default().push(p.pid);
    }
    let mut next: Vec<u32> = found.iter().copied().collect();
    while let Some(pid) = next.pop() {
        for &child in children.get(&pid).into_iter().flatten() {
            if found.insert(child) {
                next.push(child);
            }
        }
    }
    found
}

/// A line of `/proc`.
struct Process {
    pid: u32,
    parent: u32,
    session: u32,
}

/// Every process that still runs.
fn all() -> Vec<Process> {
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    let one = |entry: fs::DirEntry| {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        let stat = fs::read_to_string(entry.path().join("stat")).ok()?;
        // The name, in brackets, may hold anything.
        let mut behind = stat.rsplit_once(')')?.1.split_whitespace();
        let state = behind.next()?;
        let parent = behind.next()?.parse().ok()?;
        // behind the group
        let session = behind.nth(1)?.parse().ok()?;
        (state != "Z").then_some(Process {
            pid,
            parent,
            session,
        })
    };
    entries.flatten().filter_map(one).collect()
}

#[cfg(test)]
mod tests {
    #[test]
    fn children_are_found() {
        let mut child = std::process::Command::new("sh")
            .args(["-c", "sleep 100 & wait"])
            .spawn()
            .unwrap();
        let below = || super::tree(std::process::id());
        while !(below().contains(&child.id()) && super::tree(child.id()).len() == 2) {
            std::thread::yield_now();
        }
        for pid in super::tree(child.id()) {
            let pid = rustix::process::Pid::from_raw(pid as i32).unwrap();
            rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
        }
        child.wait().unwrap();
        assert!(!below().contains(&child.id()));
    }
}
