//! Crashes: a process that is killed while it writes, and a disk that stops at any one write. What
//! was acknowledged is there afterwards, and of what was not, all or nothing.

#![allow(clippy::disallowed_methods, clippy::disallowed_types)] // it starts processes and has a clock
#![allow(clippy::unwrap_used)] // also in what the tests share

use fastrand::Rng;
use redb::StorageBackend;
use std::io::{self, BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use vramfit_ledger::{
    GpuId, Journal, Ledger, Request, Shape, State, Store, StoreError, Volatile, size,
};

const FILE: &str = "VRAMFIT_LEDGER_CRASH_FILE";

/// Operation `n` of an endless list: the same whoever does it, given the same ledger.
fn operation<S: Store>(ledger: &Ledger<S>, n: u64) -> Result<(), vramfit_ledger::Error> {
    let mut rng = Rng::with_seed(n);
    let ids: Vec<_> = ledger.state()?.reservations().map(|r| r.id).collect();
    match (n, rng.choice(&ids)) {
        (0, _) => {
            let gpu = |i: u64| {
                (
                    GpuId::new("host", format!("GPU-{i}")),
                    size(80 + i).unwrap(),
                )
            };
            ledger.set_gpus(&[gpu(0), gpu(1)])
        }
        (_, Some(&id)) if ids.len() > 8 || rng.u8(..3) == 0 => ledger.release(id),
        (_, Some(&id)) if rng.u8(..3) == 0 => ledger.renew(id, n),
        _ => {
            let shape = Shape::anywhere([rng.u64(1..9)])?;
            let request = Request::new(format!("m{n}"), "child", vec![shape]);
            ledger.reserve(&request.leased(1000), n).map(drop)
        }
    }
}

/// The ledger after the first `n` operations, done where nothing can go wrong.
struct Replay(Ledger<Volatile>, u64);

impl Replay {
    fn to(&mut self, n: u64) -> State {
        for i in self.1..n {
            operation(&self.0, i).unwrap();
        }
        self.1 = self.1.max(n);
        self.0.state().unwrap()
    }
}

/// Not a test: the process that is killed. Acknowledges each operation on its output.
#[test]
#[ignore = "run by the test that kills it"]
fn child() {
    let Ok(path) = std::env::var(FILE) else {
        return;
    };
    let ledger = Ledger::open(Journal::open(path).unwrap()).unwrap();
    let mut out = io::stdout();
    let done = std::env::var("VRAMFIT_LEDGER_CRASH_DONE")
        .unwrap()
        .parse()
        .unwrap();
    for n in done..u64::MAX {
        operation(&ledger, n).unwrap();
        writeln!(out, "acknowledged {n}").unwrap();
        out.flush().unwrap();
    }
}

/// Lets a child work for a while, kills it, and returns how many operations are acknowledged.
fn killed_child(path: &Path, done: u64, after: Duration) -> u64 {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child", "--ignored", "--nocapture"])
        .env(FILE, path)
        .env("VRAMFIT_LEDGER_CRASH_DONE", done.to_string())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut acknowledged = done;
    let mut count = |line: io::Result<String>| {
        let line = line.unwrap();
        if let Some((_, n)) = line.split_once("acknowledged ") {
            acknowledged = n.parse::<u64>().unwrap() + 1;
        }
    };
    let mut until: Option<Instant> = None;
    while until.is_none_or(|until| Instant::now() < until) {
        count(lines.next().expect("the child ended by itself"));
        until.get_or_insert_with(|| Instant::now() + after);
    }
    child.kill().unwrap(); // SIGKILL
    lines.for_each(count);
    child.wait().unwrap();
    acknowledged
}

#[test]
fn a_killed_server_finds_its_ledger_as_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ledger.redb");
    let kills = std::env::var("VRAMFIT_LEDGER_KILLS").map_or(12, |n| n.parse().unwrap());
    let mut replay = Replay(Ledger::open(Volatile).unwrap(), 0);
    let mut rng = Rng::with_seed(7);
    let mut done = 0;
    for _ in 0..kills {
        let acknowledged = killed_child(&path, done, Duration::from_micros(rng.u64(..40_000)));
        let found = Ledger::open(Journal::open(&path).unwrap()).unwrap();
        let found = found.state().unwrap();
        // All that was acknowledged, and perhaps the one that was stored but not yet acknowledged.
        done = acknowledged;
        if found != replay.to(acknowledged) {
            done = acknowledged + 1;
            assert_eq!(found, replay.to(done));
        }
    }
    println!("{kills} kills, {done} operations");
}

/// A disk in memory that takes so many writes and no more.
#[derive(Clone, Debug)]
struct Disk(Arc<Mutex<(Vec<u8>, u64)>>);

impl Disk {
    fn of(bytes: Vec<u8>, writes: u64) -> Self {
        Disk(Arc::new(Mutex::new((bytes, writes))))
    }

    fn change<T>(&self, change: impl FnOnce(&mut Vec<u8>) -> T) -> io::Result<T> {
        let (bytes, writes) = &mut *self.0.lock().unwrap();
        *writes = writes
            .checked_sub(1)
            .ok_or_else(|| io::Error::other("crashed"))?;
        Ok(change(bytes))
    }
}

impl StorageBackend for Disk {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.lock().unwrap().0.len() as u64)
    }

    fn read(&self, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        let at = offset as usize;
        Ok(self.0.lock().unwrap().0[at..at + len].to_vec())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.change(|bytes| bytes.resize(len as usize, 0))
    }

    fn sync_data(&self, _: bool) -> io::Result<()> {
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let at = offset as usize;
        self.change(|bytes| bytes[at..at + data.len()].copy_from_slice(data))
    }
}

/// Works until the disk stops; how many operations were acknowledged.
fn work(disk: &Disk, from: u64, to: u64) -> Option<u64> {
    let ledger = Ledger::open(Journal::with_backend(disk.clone()).ok()?).ok()?;
    let failed = (from..to).find(|&n| operation(&ledger, n).is_err());
    Some(failed.unwrap_or(to))
}

#[test]
fn a_crash_at_each_single_write_loses_nothing_acknowledged() {
    let steps: u64 = 12;
    let begun = Disk::of(Vec::new(), u64::MAX);
    assert_eq!(work(&begun, 0, 4), Some(4));
    let begun = begun.0.lock().unwrap().0.clone();
    let mut crashes = 0;
    for writes in 0.. {
        let disk = Disk::of(begun.clone(), writes);
        let acknowledged = work(&disk, 4, 4 + steps).unwrap_or(4);
        let ended = disk.0.lock().unwrap().1 > 0;
        disk.0.lock().unwrap().1 = u64::MAX;
        let found = Ledger::open(Journal::with_backend(disk).unwrap()).unwrap();
        let found = found.state().unwrap();
        let mut replay = Replay(Ledger::open(Volatile).unwrap(), 0);
        if found != replay.to(acknowledged) {
            assert_eq!(found, replay.to(acknowledged + 1), "after {writes} writes");
        }
        if ended {
            break;
        }
        crashes += 1;
    }
    assert!(crashes > 2 * steps);
    println!("{crashes} crashes");
}

/// A disk that is full for a while: what it does not take is refused, and when it takes more the same ledger goes on.
#[test]
fn a_disk_that_fails_for_a_while_ends_nothing() {
    let mut refused = 0;
    for writes in 0..60 {
        let disk = Disk::of(Vec::new(), u64::MAX);
        let ledger = Ledger::open(Journal::with_backend(disk.clone()).unwrap()).unwrap();
        let mut replay = Replay(Ledger::open(Volatile).unwrap(), 0);
        (0..6).for_each(|n| operation(&ledger, n).unwrap());
        disk.0.lock().unwrap().1 = writes;
        // Tried again as long as it is not known to be done.
        let mut done = (6..40).find(|&n| operation(&ledger, n).is_err());
        let Some(failed) = done.as_mut() else {
            continue;
        };
        (0..3).for_each(|_| refused += u64::from(operation(&ledger, 99).is_err()));
        disk.0.lock().unwrap().1 = u64::MAX;
        let found = ledger.state().unwrap();
        if found != replay.to(*failed) {
            *failed += 1;
            assert_eq!(found, replay.to(*failed), "after {writes} writes");
        }
        (*failed..50).for_each(|n| operation(&ledger, n).unwrap());
        let expected = replay.to(50);
        assert_eq!(ledger.state().unwrap(), expected);
        drop(ledger);
        let again = Ledger::open(Journal::with_backend(disk).unwrap()).unwrap();
        assert_eq!(again.state().unwrap(), expected);
    }
    assert!(refused > 100, "{refused}");
}

/// A journal that is cut short or overwritten is an error that says which file it is, or is read; never a panic.
#[test]
fn damage_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ledger.redb");
    let ledger = Ledger::open(Journal::open(&path).unwrap()).unwrap();
    (0..40).for_each(|n| operation(&ledger, n).unwrap());
    drop(ledger);
    let whole = std::fs::read(&path).unwrap();
    let mut told = 0;
    let mut open = |bytes: &[u8]| {
        std::fs::write(&path, bytes).unwrap();
        let opened = Journal::open(&path).map_err(vramfit_ledger::Error::from);
        let Err(error) = opened.and_then(Ledger::open) else {
            return;
        };
        let text = error.to_string();
        match error {
            vramfit_ledger::Error::Store(StoreError::Damaged { file, .. }) => {
                assert_eq!(file, path);
                assert!(
                    text.contains("ledger.redb") && !text.contains('\n'),
                    "{text}"
                );
                told += 1;
            }
            // Found in what redb has read: an event that cannot be.
            vramfit_ledger::Error::Store(StoreError::Corrupt { .. }) => told += 1,
            error => panic!("{error}"),
        }
    };
    for len in (1..whole.len()).step_by(whole.len() / 97) {
        open(&whole[..len]);
    }
    let mut rng = Rng::with_seed(3);
    for _ in 0..300 {
        let mut bytes = whole.clone();
        let at = rng.usize(..bytes.len().min(20_000));
        bytes[at] ^= 1 << rng.u8(..8);
        open(&bytes);
    }
    open(b"no journal at all");
    open(&vec![0; 100_000]);
    assert!(told > 50, "{told}");
    // It is in nobody's way behind that.
    std::fs::write(&path, &whole).unwrap();
    assert!(Journal::open(&path).is_ok());
}

#[test]
fn a_journal_that_is_in_use_or_out_of_reach_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ledger.redb");
    let _first = Journal::open(&path).unwrap();
    let missing = folder.path().join("none").join("ledger.redb");
    for path in [path, missing] {
        let refused = Journal::open(&path).err().unwrap();
        assert!(matches!(&refused, StoreError::Open { file, .. } if *file == path));
        assert!(refused.to_string().contains("ledger.redb"), "{refused}");
    }
}

/// Making the journal short is a write like any other.
#[test]
fn a_crash_while_the_journal_is_made_short() {
    let begun = Disk::of(Vec::new(), u64::MAX);
    work(&begun, 0, 20);
    let begun = begun.0.lock().unwrap().0.clone();
    let expected = Replay(Ledger::open(Volatile).unwrap(), 0).to(20);
    for writes in 0.. {
        let disk = Disk::of(begun.clone(), writes);
        let done = Journal::with_backend(disk.clone())
            .and_then(|mut journal| journal.compact(&expected))
            .is_ok();
        disk.0.lock().unwrap().1 = u64::MAX;
        let found = Ledger::open(Journal::with_backend(disk).unwrap()).unwrap();
        assert_eq!(found.state().unwrap(), expected, "after {writes} writes");
        if done {
            break;
        }
    }
}
