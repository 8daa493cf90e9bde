//! What NVML shows of the engine's memory, sampled by a thread while it runs.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use nvml_wrapper::{Device, Nvml};
use serde::{Deserialize, Serialize};
use vramfit::devices::{ProcessUse, nvml};

use crate::{Card, Error, processes};

/// Between two samples.
const PERIOD: Duration = Duration::from_millis(10);
/// Between two looks at which processes are the engine's.
const TREE_PERIOD: Duration = Duration::from_millis(50);
/// How long NVML may take to start.
const START: Duration = Duration::from_secs(60);

/// How a figure was come by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MeasuredBy {
    /// NVML's figure for the engine's own processes.
    Process,
    /// NVML's figure for the one process that was not there before: inside a container process ids are others.
    NewProcess,
    /// What all of the card's memory in use grew by, where processes are not shown. Others may be in it.
    Growth,
}

/// What was seen on one card.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    /// How.
    pub by: MeasuredBy,
    /// The most at any time, bytes.
    pub peak_bytes: u64,
    /// In the last sample in which there was any, bytes.
    pub last_bytes: u64,
    /// Samples in which there was any.
    pub samples: u64,
    /// One of them was taken when the prompt had been computed.
    #[serde(default)]
    pub saw_the_end: bool,
}

/// One card's samples, by each way of measuring.
#[derive(Clone, Copy, Default)]
struct Samples([Option<(Seen, Instant)>; 3]);

const WAYS: [MeasuredBy; 3] = [
    MeasuredBy::Process,
    MeasuredBy::NewProcess,
    MeasuredBy::Growth,
];

impl Samples {
    fn add(&mut self, by: MeasuredBy, bytes: u64) {
        let slot = &mut self.0[by as usize];
        let before = slot.map_or(0, |(seen, _)| seen.peak_bytes);
        let samples = slot.map_or(0, |(seen, _)| seen.samples);
        let seen = Seen {
            by,
            peak_bytes: before.max(bytes),
            last_bytes: bytes,
            samples: samples + 1,
            saw_the_end: false,
        };
        *slot = Some((seen, Instant::now()));
    }

    fn best(&self, computed: Instant) -> Option<Seen> {
        let (mut seen, last) = WAYS.iter().find_map(|&by| self.0[by as usize])?;
        seen.saw_the_end = last >= computed;
        Some(seen)
    }
}

/// A running watch.
pub struct Watch {
    stop: Arc<AtomicBool>,
    samples: Arc<Mutex<Vec<Samples>>>,
}

impl Watch {
    /// Notes what is on `cards` before the engine is there, and returns when that is done.
    pub fn new(cards: &[Card]) -> Result<(Watch, Starter), Error> {
        let stop = Arc::new(AtomicBool::new(false));
        let samples = Arc::new(Mutex::new(vec![Samples::default(); cards.len()]));
        let (ready, is_ready) = mpsc::channel();
        let (start, root) = mpsc::channel();
        let (cards, shared, stopped) = (cards.to_vec(), samples.clone(), stop.clone());
        thread::spawn(move || watch(&cards, &shared, &stopped, &ready, &root));
        match is_ready.recv_timeout(START) {
            Ok(Ok(())) => Ok((Watch { stop, samples }, Starter(start))),
            Ok(Err(reason)) => Err(Error::Driver(reason)),
            Err(_) => Err(Error::Driver("NVML does not answer".to_string())),
        }
    }

    /// What was seen on each card up to now; the prompt had been computed at `computed`.
    pub fn seen(&self, computed: Instant) -> Vec<Option<Seen>> {
        let samples = self.samples.lock().unwrap_or_else(PoisonError::into_inner);
        samples
            .iter()
            .map(|of_card| of_card.best(computed))
            .collect()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        // Not waited for: NVML may hang.
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// Tells the watch which process the engine is below.
pub struct Starter(mpsc::Sender<u32>);

impl Starter {
    /// From now on.
    pub fn start(&self, root: u32) {
        let _ = self.0.send(root);
    }
}

/// Processes on `device`; none where NVML does not tell.
pub fn processes_on(device: &Device) -> Vec<ProcessUse> {
    nvml::processes(device, u64::MAX).unwrap_or_default()
}

/// Memory in use on `device`.
pub fn used_on(library: &Nvml, device: &Device) -> Option<u64> {
    Some(nvml::memory(library, device).ok()?.used)
}

fn device<'n>(nvml: &'n Nvml, card: &Card) -> Result<Device<'n>, String> {
    let by_uuid = card.uuid.as_deref().map(|uuid| nvml.device_by_uuid(uuid));
    let found = match (by_uuid, card.pci_id.as_deref()) {
        (Some(Ok(device)), _) => Ok(device),
        (_, Some(pci_id)) => nvml.device_by_pci_bus_id(pci_id),
        (Some(error), None) => error,
        (None, None) => return Err(format!("{} has neither UUID nor PCI address", card.name)),
    };
    found.map_err(|error| format!("NVML does not know {}: {error}", card.name))
}

/// What is on a card before the engine is there.
struct Before {
    used_bytes: Option<u64>,
    pids: BTreeSet<u32>,
}

fn watch(
    cards: &[Card],
    samples: &Mutex<Vec<Samples>>,
    stop: &AtomicBool,
    ready: &mpsc::Sender<Result<(), String>>,
    root: &mpsc::Receiver<u32>,
) {
    let nvml = match Nvml::init() {
        Ok(nvml) => nvml,
        Err(error) => {
            let _ = ready.send(Err(format!("NVML is not there: {error}")));
            return;
        }
    };
    let devices: Result<Vec<Device>, String> = cards.iter().map(|c| device(&nvml, c)).collect();
    let devices = match devices {
        Ok(devices) => devices,
        Err(reason) => {
            let _ = ready.send(Err(reason));
            return;
        }
    };
    let before: Vec<Before> = devices
        .iter()
        .map(|device| Before {
            used_bytes: used_on(&nvml, device),
            pids: processes_on(device).iter().map(|p| p.pid).collect(),
        })
        .collect();
    let _ = ready.send(Ok(()));
    let Ok(root) = root.recv() else {
        return;
    };
    let mut tree = processes::tree(root);
    let mut looked = Instant::now();
    while !stop.load(Ordering::Relaxed) {
        if looked.elapsed() >= TREE_PERIOD {
            tree = processes::tree(root);
            looked = Instant::now();
        }
        for (i, (device, before)) in devices.iter().zip(&before).enumerate() {
            let found = sample(&nvml, device, before, &tree);
            let mut samples = samples.lock().unwrap_or_else(PoisonError::into_inner);
            for (by, bytes) in found {
                if let Some(samples) = samples.get_mut(i) {
                    samples.add(by, bytes);
                }
            }
        }
        thread::sleep(PERIOD);
    }
}

fn sample(
    nvml: &Nvml,
    device: &Device,
    before: &Before,
    tree: &BTreeSet<u32>,
) -> Vec<(MeasuredBy, u64)> {
    let mut found = Vec::new();
    let processes = processes_on(device);
    let bytes = |p: &ProcessUse| p.used_bytes;
    let own: Option<u64> = processes
        .iter()
        .filter(|p| tree.contains(&p.pid))
        .map(bytes)
        .sum();
    if let Some(own) = own.filter(|&own| own > 0) {
        found.push((MeasuredBy::Process, own));
    }
    let new: Vec<&ProcessUse> = processes
        .iter()
        .filter(|p| !before.pids.contains(&p.pid))
        .collect();
    if let [only] = new.as_slice()
        && let Some(bytes) = bytes(only)
    {
        found.push((MeasuredBy::NewProcess, bytes));
    }
    let used = used_on(nvml, device);
    if let (Some(used), Some(before)) = (used, before.used_bytes)
        && used > before
    {
        found.push((MeasuredBy::Growth, used - before));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A figure of before the prompt's end is not of all that it took.
    #[test]
    fn a_way_that_stopped_before_the_end_is_told() {
        let mut samples = Samples::default();
        let start = Instant::now();
        samples.add(MeasuredBy::Process, 5);
        thread::sleep(Duration::from_millis(2));
        let computed = Instant::now();
        samples.add(MeasuredBy::Growth, 9);
        let seen = samples.best(computed).unwrap();
        let found = (seen.by, seen.peak_bytes, seen.saw_the_end);
        assert_eq!(found, (MeasuredBy::Process, 5, false));
        assert!(samples.best(start).unwrap().saw_the_end);
        samples.add(MeasuredBy::Process, 7);
        let seen = samples.best(computed).unwrap();
        assert!(seen.saw_the_end && seen.peak_bytes == 7);
    }
}
