//! NVML: what is free, and who takes the rest. It makes no context and sees all processes, but knows nothing
//! of `CUDA_VISIBLE_DEVICES`, so a GPU is found by CUDA's UUID, or by its PCI id.

use std::collections::BTreeMap;

use nvml_wrapper::enums::device::UsedGpuMemory;
use nvml_wrapper::error::{NvmlError, nvml_try};
use nvml_wrapper::struct_wrappers::device::ProcessInfo;
use nvml_wrapper::{Device, Nvml as Library};
use nvml_wrapper_sys::bindings::nvmlMemory_t;

use super::machine::ProcessUse;

/// NVML, running.
pub(super) struct Nvml {
    library: Library,
}

/// What NVML says of a device's memory, bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// All of it.
    pub total: u64,
    /// What nobody has.
    pub free: u64,
    /// Of processes, without the driver's own where `reserved` is known.
    pub used: u64,
    /// The driver's own.
    pub reserved: Option<u64>,
}

/// What NVML says of a device.
pub(super) struct Seen {
    pub(super) index: Option<u32>,
    pub(super) uuid: Option<String>,
    pub(super) name: Option<String>,
    /// An instance of a GPU in MIG mode.
    pub(super) is_mig: bool,
    /// A whole GPU in MIG mode: its memory is not that of the instance CUDA shows.
    pub(super) is_mig_parent: bool,
    /// The error is NVML's.
    pub(super) memory: Result<Memory, String>,
    /// The error is NVML's.
    pub(super) processes: Result<Vec<ProcessUse>, String>,
    /// NVML's number of the board, where several GPUs share one.
    pub(super) board: Option<u32>,
}

impl Nvml {
    /// Loads and starts it. The error is its own.
    pub(super) fn start() -> Result<Self, String> {
        match Library::init() {
            Ok(library) => Ok(Self { library }),
            Err(error) => Err(error.to_string()),
        }
    }

    pub(super) fn driver_version(&self) -> Option<String> {
        let version = self.library.sys_driver_version().ok()?;
        (!version.is_empty()).then_some(version)
    }

    pub(super) fn count(&self) -> Option<u32> {
        self.library.device_count().ok()
    }

    /// The GPU or instance of CUDA's UUID, else of its PCI id.
    pub(super) fn find(&self, uuid: Option<&[u8; 16]>, pci_id: Option<&str>) -> Option<Seen> {
        let by_uuid = |kind| {
            let text = uuid_text(kind, uuid?);
            let found = self.library.device_by_uuid(text.as_str()).ok()?;
            Some(self.seen(&found, Some(text), kind == "MIG"))
        };
        let by_pci_id = || {
            let found = self.library.device_by_pci_bus_id(pci_id?).ok()?;
            Some(self.seen(&found, found.uuid().ok(), false))
        };
        by_uuid("GPU").or_else(|| by_uuid("MIG")).or_else(by_pci_id)
    }

    fn seen(&self, device: &Device<'_>, uuid: Option<String>, is_mig: bool) -> Seen {
        let parent = match is_mig {
            true => device.mig_parent_device().ok(),
            false => None,
        };
        let whole = parent.as_ref().unwrap_or(device);
        // Not supported, on most cards.
        let mig_mode = device.mig_mode().map_or(0, |mode| mode.current);
        let memory = memory(&self.library, device);
        let most = memory.as_ref().map_or(u64::MAX, |memory| memory.total);
        let shares_board = whole.is_multi_gpu_board().unwrap_or(false);
        Seen {
            index: whole.index().ok(),
            uuid,
            name: device.name().ok(),
            is_mig,
            is_mig_parent: !is_mig && mig_mode != 0,
            memory: memory.map_err(|error| error.to_string()),
            processes: processes(device, most).map_err(|error| error.to_string()),
            board: match shares_board {
                true => whole.board_id().ok(),
                false => None,
            },
        }
    }
}

/// By the second version, which tells the driver's own apart; drivers before 510, so all of Kepler's, have only
/// the first, where it is in `used`: figures of one process compare with each other only.
pub fn memory(library: &Library, device: &Device<'_>) -> Result<Memory, NvmlError> {
    if let Ok(memory) = device.memory_info() {
        return Ok(Memory {
            total: memory.total,
            free: memory.free,
            used: memory.used,
            reserved: Some(memory.reserved),
        });
    }
    let first = library.lib().nvmlDeviceGetMemoryInfo.as_ref();
    let first = first.map_err(|error| NvmlError::FailedToLoadSymbol(error.to_string()))?;
    let mut memory = nvmlMemory_t {
        total: 0,
        free: 0,
        used: 0,
    };
    // SAFETY: the handle is `device`'s, which lives, and `memory` outlives the call.
    nvml_try(unsafe { first(device.handle(), &mut memory) })?;
    Ok(Memory {
        total: memory.total,
        free: memory.free,
        used: memory.used,
        reserved: None,
    })
}

/// Processes that compute or draw, by id. A process that takes more than `most` bytes is one that NVML is wrong about.
pub fn processes(device: &Device<'_>, most: u64) -> Result<Vec<ProcessUse>, NvmlError> {
    // Drivers before 495 have only the second version.
    let computing = device
        .running_compute_processes()
        .or_else(|_| device.running_compute_processes_v2())?;
    let drawing = device
        .running_graphics_processes()
        .or_else(|_| device.running_graphics_processes_v2())
        .unwrap_or_default();
    let mut by_pid: BTreeMap<u32, Option<u64>> = BTreeMap::new();
    for process in computing.iter().chain(&drawing) {
        // One that does both is in both lists, with the same bytes.
        let used = by_pid.entry(process.pid).or_default();
        *used = (*used).max(used_bytes(process).filter(|&bytes| bytes <= most));
    }
    let list = by_pid
        .into_iter()
        .map(|(pid, used_bytes)| ProcessUse { pid, used_bytes });
    Ok(list.collect())
}

fn used_bytes(process: &ProcessInfo) -> Option<u64> {
    match process.used_gpu_memory {
        UsedGpuMemory::Used(bytes) => Some(bytes),
        UsedGpuMemory::Unavailable => None,
    }
}

/// As NVML and `nvidia-smi` write a UUID: `GPU-8f3e6a51-...`.
pub fn uuid_text(kind: &str, uuid: &[u8; 16]) -> String {
    let hex: String = uuid.iter().map(|byte| format!("{byte:02x}")).collect();
    let (a, rest) = hex.split_at(8);
    let (b, rest) = rest.split_at(4);
    let (c, rest) = rest.split_at(4);
    let (d, e) = rest.split_at(4);
    format!("{kind}-{a}-{b}-{c}-{d}-{e}")
}

#[cfg(test)]
mod tests {
    #[test]
    fn uuids_are_written_as_nvidia_smi_does() {
        let uuid: [u8; 16] = std::array::from_fn(|i| i as u8 * 17);
        assert_eq!(
            super::uuid_text("GPU", &uuid),
            "GPU-00112233-4455-6677-8899-aabbccddeeff"
        );
    }
}
