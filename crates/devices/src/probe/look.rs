//! The probe itself, in the calling process.

use std::collections::BTreeMap;
use std::mem::ManuallyDrop;

use vramfit_ggml::ComputeCapability;

use super::Probe;
use super::driver::{Attribute, Driver, DriverDevice};
use super::error::ProbeError;
use super::machine::{FreeFrom, FreeMemory, Machine, ProbedDevice, ProcessUse};
use super::notes::ProbeNote;
use super::nvml::{Nvml, Seen, uuid_text};

const VISIBLE: &str = "CUDA_VISIBLE_DEVICES";

/// A GPU whose name nobody says. No other GPU is like it.
pub const UNNAMED_GPU: &str = "unnamed GPU";

/// Asks the driver and NVML in the calling process, which hangs if they do: [`ChildProbe`](super::ChildProbe) does
/// not.
#[derive(Clone, Copy, Debug, Default)]
pub struct DriverProbe {
    /// Where NVML does not say what is free, make a CUDA context on the device, ask from inside it and
    /// give it back. It takes some hundred MB of the device meanwhile.
    pub make_context: bool,
}

impl Probe for DriverProbe {
    fn machine(&self) -> Result<Machine, ProbeError> {
        // Never let go of: a library that hangs in its end would take the answer with it.
        let nvml = ManuallyDrop::new(Nvml::start());
        let nvml_gpus = nvml.as_ref().ok().and_then(Nvml::count);
        let driver = Driver::load().map_err(|why| ProbeError::NoDriver { why, nvml_gpus })?;
        let visible = std::env::var_os(VISIBLE).map(|text| text.to_string_lossy().into_owned());
        let devices = match driver.init()? {
            true => driver.devices()?,
            false => Vec::new(),
        };
        if devices.is_empty() {
            return Err(ProbeError::NoDevice { visible, nvml_gpus });
        }
        let mut look = Look {
            make_context: self.make_context,
            nvml: nvml.as_ref().ok(),
            notes: Vec::new(),
        };
        if let Err(why) = &*nvml {
            look.notes.push(ProbeNote::NoNvml { why: why.clone() });
        }
        let devices = (0..)
            .zip(&devices)
            .map(|(index, device)| look.device(index, device))
            .collect::<Result<Vec<_>, _>>()?;
        look.note_hidden(&devices, visible, nvml_gpus);
        let machine = Machine {
            driver: look.nvml.and_then(Nvml::driver_version),
            cuda: driver.cuda_version(),
            devices: number_boards(devices),
            notes: look.notes,
        };
        machine.checked().map_err(ProbeError::Failed)
    }
}

/// What is shared while the devices are looked at.
struct Look<'n> {
    make_context: bool,
    nvml: Option<&'n Nvml>,
    notes: Vec<ProbeNote>,
}

impl Look<'_> {
    fn device(
        &mut self,
        index: u32,
        device: &DriverDevice<'_>,
    ) -> Result<ProbedDevice, ProbeError> {
        let uuid = device.uuid();
        let pci_id = device.pci_id();
        let seen = self
            .nvml
            .and_then(|nvml| nvml.find(uuid.as_ref(), pci_id.as_deref()));
        if self.nvml.is_some() && seen.is_none() {
            self.notes.push(ProbeNote::NotInNvml { device: index });
        }
        let whole = seen.as_ref().filter(|seen| !seen.is_mig_parent);
        let memory = whole.and_then(|seen| seen.memory.as_ref().ok());
        let total_bytes = device.total_bytes()?;
        let integrated = device.attribute(Attribute::Integrated).unwrap_or(0) != 0;
        let major = device.attribute(Attribute::ComputeCapabilityMajor)?;
        let minor = device.attribute(Attribute::ComputeCapabilityMinor)?;
        let is_mig = self.note_mig(index, seen.as_ref());
        let free = self.free(index, device, integrated, seen.as_ref())?;
        let virtual_memory = device
            .attribute(Attribute::VirtualMemoryManagement)
            .ok()
            .map(|value| value != 0);
        if virtual_memory == Some(false) {
            self.notes.push(ProbeNote::OlderPool { device: index });
        }
        Ok(ProbedDevice {
            cuda_index: index,
            nvml_index: seen.as_ref().and_then(|seen| seen.index),
            uuid: seen
                .as_ref()
                .and_then(|seen| seen.uuid.clone())
                .or_else(|| uuid.map(|uuid| uuid_text("GPU", &uuid))),
            pci_id,
            name: self.name(index, device, seen.as_ref()),
            total_bytes,
            nvml_total_bytes: memory.map(|memory| memory.total),
            reserved_bytes: memory.and_then(|memory| memory.reserved),
            free: free.map(|(bytes, from)| FreeMemory {
                bytes: bytes.min(total_bytes),
                from,
            }),
            // Without the second version of NVML's call the driver's own is among what is used.
            used_bytes: memory.map(|memory| match memory.reserved {
                Some(_) => memory.used,
                None => total_bytes.saturating_sub(memory.free).min(memory.used),
            }),
            processes: whole.and_then(|seen| self.processes(index, seen)),
            compute_capability: ComputeCapability::new(major.min(99), minor.min(9)),
            sm_count: device.attribute(Attribute::MultiprocessorCount).ok(),
            integrated,
            virtual_memory,
            is_mig,
            board: seen.as_ref().and_then(|seen| seen.board),
        })
    }

    /// The driver's name for it, else NVML's.
    fn name(&mut self, index: u32, device: &DriverDevice<'_>, seen: Option<&Seen>) -> String {
        let why = match device.name() {
            Ok(name) => return name,
            Err(error) => error.cause(),
        };
        if let Some(name) = seen.and_then(|seen| seen.name.clone()) {
            return name;
        }
        self.notes
            .push(ProbeNote::NameUnknown { device: index, why });
        UNNAMED_GPU.to_owned()
    }

    fn processes(&mut self, index: u32, seen: &Seen) -> Option<Vec<ProcessUse>> {
        match &seen.processes {
            Ok(processes) => Some(processes.clone()),
            Err(why) => {
                self.notes.push(ProbeNote::ProcessesUnknown {
                    device: index,
                    why: why.clone(),
                });
                None
            }
        }
    }

    fn note_mig(&mut self, device: u32, seen: Option<&Seen>) -> bool {
        let Some(seen) = seen else { return false };
        if seen.is_mig_parent {
            self.notes.push(ProbeNote::MigInstanceUnknown { device });
        } else if seen.is_mig {
            self.notes.push(ProbeNote::MigInstance { device });
        }
        seen.is_mig || seen.is_mig_parent
    }

    /// From the system for an integrated GPU, as llama.cpp does; else from NVML; else, where that is wanted,
    /// from inside a context.
    fn free(
        &mut self,
        index: u32,
        device: &DriverDevice<'_>,
        integrated: bool,
        seen: Option<&Seen>,
    ) -> Result<Option<(u64, FreeFrom)>, ProbeError> {
        if let Some(bytes) = integrated.then(system_free).flatten() {
            self.notes.push(ProbeNote::SharedMemory { device: index });
            return Ok(Some((bytes, FreeFrom::System)));
        }
        let why = match (seen, self.nvml) {
            (Some(seen), _) if seen.is_mig_parent => "a MIG instance".to_owned(),
            (Some(seen), _) => match &seen.memory {
                Ok(memory) => return Ok(Some((memory.free, FreeFrom::Nvml))),
                Err(why) => format!("NVML: {why}"),
            },
            (None, Some(_)) => "NVML does not know it".to_owned(),
            (None, None) => "no NVML".to_owned(),
        };
        if self.make_context {
            match device.free_in_context() {
                Ok(bytes) => {
                    self.notes
                        .push(ProbeNote::MeasuredInContext { device: index });
                    return Ok(Some((bytes, FreeFrom::Context)));
                }
                Err(error) => self.notes.push(ProbeNote::ContextFailed {
                    device: index,
                    why: error.cause(),
                }),
            }
        }
        self.notes
            .push(ProbeNote::FreeUnknown { device: index, why });
        Ok(None)
    }

    /// Says so where GPUs are hidden; MIG instances are not what NVML counts.
    fn note_hidden(
        &mut self,
        devices: &[ProbedDevice],
        visible: Option<String>,
        nvml_gpus: Option<u32>,
    ) {
        let shown = u32::try_from(devices.len()).unwrap_or(u32::MAX);
        if let Some(all) = nvml_gpus
            && shown < all
            && devices.iter().all(|device| !device.is_mig)
        {
            self.notes.push(ProbeNote::Hidden {
                shown,
                all,
                visible,
            });
        }
    }
}

/// NVML's own numbers of boards are any numbers; ours count from 0, in the order of the devices.
fn number_boards(mut devices: Vec<ProbedDevice>) -> Vec<ProbedDevice> {
    let mut numbers = BTreeMap::new();
    for board in devices
        .iter_mut()
        .filter_map(|device| device.board.as_mut())
    {
        let next = u32::try_from(numbers.len()).unwrap_or(u32::MAX);
        *board = *numbers.entry(*board).or_insert(next);
    }
    devices
}

/// What the system would give without swapping, bytes.
fn system_free() -> Option<u64> {
    available(&std::fs::read_to_string("/proc/meminfo").ok()?)
}

fn available(meminfo: &str) -> Option<u64> {
    let line = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024).filter(|&bytes| bytes > 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::probe::machine::tests::k80;

    #[test]
    fn available_memory_is_read_as_the_kernel_writes_it() {
        let text = "MemTotal:       65843156 kB\nMemFree:  1 kB\nMemAvailable:   60000000 kB\n";
        assert_eq!(available(text), Some(60_000_000 * 1024));
        assert_eq!(available("MemTotal: 1 kB\n"), None);
        assert_eq!(available("MemAvailable: many kB\n"), None);
        assert_eq!(available("MemAvailable: 99999999999999999999 kB\n"), None);
    }

    #[test]
    fn boards_are_numbered_from_the_first() {
        let boards = [Some(0x8300), Some(0x8300), None, Some(0x200)];
        let devices = (0..).zip(boards).map(|(i, board)| k80(i, board)).collect();
        let numbered: Vec<Option<u32>> = number_boards(devices).iter().map(|d| d.board).collect();
        assert_eq!(numbered, [Some(0), Some(0), None, Some(1)]);
    }
}
