//! From what a probe finds to the planner's devices. All of what a driver does not say, and of what CUDA is
//! expected to take beside llama.cpp's buffers, is filled in here and in [`Facts::device`].

use std::collections::BTreeSet;
use std::fmt;

use vramfit_ggml::cuda::PoolKind;
use vramfit_plan::Device;

use super::error::ProbeError;
use super::machine::{Machine, ProbedDevice};
use super::notes::ProbeNote;
use crate::facts::Facts;
use crate::list::{GpuEntry, GpuList, Note};
use crate::lookup::find_card;

/// One of the machine's GPUs, as `--gpus auto:1` or `--gpus auto:GPU-8f3e` names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Pick {
    /// By CUDA's index.
    Index(u32),
    /// By the start of its UUID, in small letters after `GPU-` or `MIG-`.
    Uuid(String),
}

impl Pick {
    /// `1`, `GPU-8f3e` or `MIG-8f3e`.
    pub(crate) fn read(text: &str) -> Option<Self> {
        if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
            return text.parse().ok().map(Self::Index);
        }
        let (kind, rest) = text.split_once('-')?;
        let kind = kind.to_ascii_uppercase();
        let is_uuid = |byte: u8| byte.is_ascii_hexdigit() || byte == b'-';
        let sound = ["GPU", "MIG"].contains(&kind.as_str())
            && !rest.is_empty()
            && rest.bytes().all(is_uuid);
        sound.then(|| Self::Uuid(format!("{kind}-{}", rest.to_ascii_lowercase())))
    }

    fn is_of(&self, device: &ProbedDevice) -> bool {
        match self {
            Self::Index(index) => device.cuda_index == *index,
            Self::Uuid(start) => device
                .uuid
                .as_ref()
                .is_some_and(|uuid| uuid.starts_with(start)),
        }
    }
}

impl fmt::Display for Pick {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Index(index) => write!(f, "{index}"),
            Self::Uuid(uuid) => f.write_str(uuid),
        }
    }
}

impl ProbedDevice {
    /// As the planner sees it: CUDA's total, what is free of it (all, where that is not known), and the allowance for
    /// what CUDA itself will take, since no context is there yet. Where the driver has no SM count the
    /// catalogue's is taken.
    pub fn device(&self) -> Device {
        let card = find_card(&self.name).ok().map(|found| found.card);
        let facts = Facts {
            name: self.name.clone(),
            card: card.map(|card| card.key),
            total_bytes: self.total_bytes,
            free_bytes: self.free.map(|free| free.bytes),
            compute_capability: self.compute_capability,
            sm_count: self
                .sm_count
                .or_else(|| card.and_then(|card| card.sm_count)),
            integrated: self.integrated,
            pool: match self.virtual_memory {
                Some(false) => PoolKind::Legacy,
                _ => PoolKind::Vmm,
            },
            // CUDA's own total, and what is free, are without it.
            driver_keeps_some: false,
        };
        facts.device()
    }

    fn ledger_id(&self) -> String {
        match &self.uuid {
            Some(uuid) => uuid.clone(),
            None => format!("CUDA{}", self.cuda_index),
        }
    }

    /// Where the planner's figures are from.
    fn source(&self) -> &'static str {
        use super::machine::FreeFrom;
        match self.free.map(|free| free.from) {
            Some(FreeFrom::Nvml) => "total from CUDA, free from NVML",
            Some(FreeFrom::System) => "total from CUDA, free from the system",
            Some(FreeFrom::Context) => "total and free from CUDA",
            None => "total from CUDA",
        }
    }
}

impl Machine {
    /// The devices' names for a ledger, which outlive a restart: UUIDs, `CUDA0` for one that has none.
    pub fn ids(&self) -> Vec<String> {
        self.devices.iter().map(ProbedDevice::ledger_id).collect()
    }

    /// What is free of each device, bytes; all of it, where that is not known.
    pub fn free_bytes(&self) -> Vec<u64> {
        let free =
            |device: &ProbedDevice| device.free.map_or(device.total_bytes, |free| free.bytes);
        self.devices.iter().map(free).collect()
    }

    /// Its notes as sentences, each once, whatever number of devices it is about.
    pub fn note_texts(&self) -> Vec<String> {
        let gathered = ProbeNote::gathered(&self.notes, Some).into_iter();
        gathered.map(|(note, devices)| note.of(&devices)).collect()
    }

    /// All its devices, in CUDA's order.
    pub fn list(&self) -> GpuList {
        self.listed(self.devices.iter().collect())
    }

    /// As [`Machine::ids`], those of `picks`, in that order.
    pub fn picked_ids(&self, picks: &[Pick]) -> Result<Vec<String>, ProbeError> {
        let picked = self.pick(picks)?;
        Ok(picked.into_iter().map(ProbedDevice::ledger_id).collect())
    }

    /// Those of `picks`, in that order, each once.
    pub fn picked(&self, picks: &[Pick]) -> Result<GpuList, ProbeError> {
        let picked = self.pick(picks)?;
        let mut list = self.listed(picked.clone());
        let same = |(i, d): (usize, &&ProbedDevice)| u32::try_from(i) == Ok(d.cuda_index);
        let renumbered = picked.len() < self.devices.len() || !picked.iter().enumerate().all(same);
        if renumbered {
            let visible = picked.iter().map(|device| match &device.uuid {
                Some(uuid) => uuid.clone(),
                None => device.cuda_index.to_string(),
            });
            list.notes.push(Note::Picked {
                visible: visible.collect::<Vec<_>>().join(","),
            });
        }
        Ok(list)
    }

    fn pick(&self, picks: &[Pick]) -> Result<Vec<&ProbedDevice>, ProbeError> {
        let mut picked: Vec<&ProbedDevice> = Vec::new();
        for pick in picks {
            let refuse = |there: String| ProbeError::NoSuchDevice {
                pick: pick.to_string(),
                there,
            };
            let found: Vec<_> = self.devices.iter().filter(|d| pick.is_of(d)).collect();
            let device = match found.as_slice() {
                [device] => *device,
                [] => return Err(refuse(self.there())),
                several => {
                    return Err(refuse(format!(
                        "{} GPUs have a UUID that starts so",
                        several.len()
                    )));
                }
            };
            if picked.iter().any(|d| d.cuda_index == device.cuda_index) {
                return Err(refuse("named twice".to_owned()));
            }
            picked.push(device);
        }
        Ok(picked)
    }

    fn there(&self) -> String {
        match self.devices.len() {
            1 => "CUDA shows one GPU, number 0".to_owned(),
            n => format!("CUDA shows {n} GPUs, numbers 0 to {}", n.saturating_sub(1)),
        }
    }

    fn listed(&self, devices: Vec<&ProbedDevice>) -> GpuList {
        let mut list = GpuList::default();
        let sources: BTreeSet<&str> = devices.iter().map(|device| device.source()).collect();
        list.notes.push(Note::Probed {
            count: devices.len(),
            source: Vec::from_iter(sources).join("; "),
            driver: self.driver.clone(),
        });
        let index = |device: u32| {
            let at = devices.iter().position(|d| d.cuda_index == device);
            at.and_then(|at| u32::try_from(at).ok())
        };
        // Nothing that a plan is made of depends on who takes what is not free.
        let about = ProbeNote::gathered(&self.notes, index)
            .into_iter()
            .filter(|(note, _)| !matches!(note, ProbeNote::ProcessesUnknown { .. }));
        list.notes
            .extend(about.map(|(note, devices)| Note::Probe { note, devices }));
        list.ids = devices.iter().map(|device| device.ledger_id()).collect();
        for device in devices {
            let at = list.devices.len();
            list.devices.push(device.device());
            let text = format!("{} of this machine", device.name);
            match list.entries.last_mut() {
                Some(entry)
                    if entry.text == text && entry.boards.is_empty() == device.board.is_none() =>
                {
                    entry.devices.end = at + 1;
                    entry.boards.extend(device.board);
                }
                _ => list.entries.push(GpuEntry {
                    text,
                    devices: at..at + 1,
                    card: find_card(&device.name).ok().map(|found| found.card),
                    boards: device.board.into_iter().collect(),
                }),
            }
        }
        list
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::probe::machine::tests::k80;
    use crate::{Gpus, Probe, ProbeNote};

    struct Three;

    impl Probe for Three {
        fn machine(&self) -> Result<Machine, ProbeError> {
            Ok(Machine {
                driver: Some("470.256.02".to_owned()),
                devices: vec![k80(0, Some(0)), k80(1, Some(0)), k80(2, Some(1))],
                notes: vec![ProbeNote::NotInNvml { device: 2 }],
                ..Machine::default()
            })
        }
    }

    fn read(text: &str) -> Result<GpuList, String> {
        let gpus = text.parse::<Gpus>().map_err(|error| error.to_string())?;
        gpus.resolve(&Three).map_err(|error| error.to_string())
    }

    fn notes(list: &GpuList) -> Vec<String> {
        list.notes.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_probed_device_is_its_drivers_word() {
        let list = read("auto").unwrap();
        let d = &list.devices[0];
        assert_eq!((d.total_bytes >> 20, d.free_bytes >> 20), (11_441, 10_000));
        // The measured figure of a K80, and nothing for what the driver keeps.
        assert_eq!(d.overhead.bytes >> 20, 169);
        assert_eq!(d.sm_count, Some(13));
        let mut unknown = k80(0, None);
        (unknown.free, unknown.sm_count) = (None, None);
        assert_eq!(unknown.device().free_bytes >> 20, 11_441);
        assert_eq!(unknown.device().sm_count, Some(13), "of the catalogue");
    }

    #[test]
    fn entries_say_boards_as_nvml_does() {
        let list = read("auto").unwrap();
        assert_eq!(list.entries.len(), 1);
        assert_eq!(
            list.entries[0].description(),
            "Tesla K80 of this machine: 3 devices, one board and half a board (1 of 2 dies)"
        );
        assert_eq!(list.board(1), Some(0));
        assert_eq!(list.board(2), Some(1));
        let list = read("auto:0,2").unwrap();
        assert_eq!(
            list.entries[0].description(),
            "Tesla K80 of this machine: 2 devices, on 2 boards"
        );
    }

    #[test]
    fn gpus_are_picked_by_number_and_uuid() {
        let check = |text: &str, free_of: &[&str]| {
            let list = read(text).unwrap();
            let visible = free_of.join(",");
            let said = notes(&list).iter().any(|note| note.contains(&visible));
            assert!(said, "{text}: {:?}", notes(&list));
            assert_eq!(list.devices.len(), free_of.len(), "{text}");
        };
        let uuid = |i: u32| k80(i, None).uuid.unwrap();
        check("auto:1", &[&uuid(1)]);
        check("auto: 2, 0", &[&uuid(2), &uuid(0)]);
        check("AUTO:gpu-00000002", &[&uuid(2)]);
        let all = notes(&read("auto:0,1,2").unwrap());
        assert!(!all.iter().any(|note| note.contains("VISIBLE")), "{all:?}");
    }

    #[test]
    fn wrong_picks_are_refused_with_what_there_is() {
        let check = |text: &str, expected: &str| {
            let error = read(text).unwrap_err();
            assert!(error.contains(expected), "{text}: {error}");
        };
        check("auto:3", "auto:3: CUDA shows 3 GPUs, numbers 0 to 2");
        check("auto:GPU-0000", "3 GPUs have a UUID that starts so");
        check("auto:1,1", "named twice");
        check("auto:", "auto:0,2");
        check("auto:k80", "auto:0,2");
        check("auto:0:free=9GiB", "auto:0,2");
        check("auto,k80", "stands alone");
    }

    #[test]
    fn notes_are_numbered_as_the_list_is() {
        let about = |text: &str, of: &str| notes(&read(text).unwrap()).concat().contains(of);
        assert!(about("auto", "CUDA2: NVML knows"));
        assert!(about("auto:2", "CUDA0: NVML knows"));
        assert!(!about("auto:0", "NVML knows"));
    }

    #[test]
    fn a_note_of_several_devices_is_said_once() {
        let mut machine = Three.machine().unwrap();
        let unknown = |device| ProbeNote::FreeUnknown {
            device,
            why: "no NVML".to_owned(),
        };
        let no_nvml = ProbeNote::NoNvml {
            why: "gone".to_owned(),
        };
        machine.notes = vec![no_nvml, unknown(0), unknown(1), unknown(2)];
        let texts = machine.note_texts();
        assert_eq!(texts.len(), 2, "{texts:?}");
        assert!(texts[1].starts_with("CUDA0, CUDA1, CUDA2: what is free is not known (no NVML)"));
    }

    #[test]
    fn a_ledger_is_given_uuids_and_what_is_free() {
        let mut machine = Three.machine().unwrap();
        (machine.devices[1].free, machine.devices[2].uuid) = (None, None);
        let uuid = k80(0, None).uuid.unwrap();
        assert_eq!(
            (&machine.ids()[0], machine.ids()[2].as_str()),
            (&uuid, "CUDA2")
        );
        let mib: Vec<u64> = machine
            .free_bytes()
            .iter()
            .map(|bytes| bytes >> 20)
            .collect();
        assert_eq!(mib, [10_000, 11_441, 10_000]);
        assert_eq!(machine.list().ledger_ids(), machine.ids());
        let picks = [Pick::Index(2), Pick::Index(0)];
        let picked = machine.picked(&picks).unwrap();
        assert_eq!(picked.ledger_ids(), ["CUDA2", &uuid]);
        assert_eq!(read("auto").unwrap().ledger_ids()[0], uuid);
    }
}
