//! Devices: found by index, UUID or PCI address; their names, addresses and memory.

use std::ffi::{c_char, c_int, c_uint};

use super::{Handle, MIG, code, device, devices, since, started};
use crate::driver::shown_name;
use crate::guard::{exported, put, put_text, text};
use crate::spec::pci_of_text;
use crate::world::world;

/// `nvmlPciInfo_t`, of which the first form lacks the last text.
#[repr(C)]
pub(crate) struct PciInfo {
    bus_id_legacy: [u8; 16],
    domain: c_uint,
    bus: c_uint,
    device: c_uint,
    device_id: c_uint,
    subsystem_id: c_uint,
    bus_id: [u8; 32],
}

/// `nvmlMemory_t`: what the driver keeps counts as used.
#[repr(C)]
pub(crate) struct Memory {
    total: u64,
    free: u64,
    used: u64,
}

/// `nvmlMemory_v2_t`: what the driver keeps stands apart.
#[repr(C)]
pub(crate) struct MemoryV2 {
    version: c_uint,
    total: u64,
    reserved: u64,
    free: u64,
    used: u64,
}

/// The version word of NVML's structs: size and number.
const MEMORY_V2: c_uint = size_of::<MemoryV2>() as c_uint | 2 << 24;
const NVIDIA: c_uint = 0x10de;

fn fixed<const N: usize>(text: &str) -> [u8; N] {
    let mut bytes = [0; N];
    for (to, from) in bytes.iter_mut().take(N - 1).zip(text.bytes()) {
        *to = from;
    }
    bytes
}

fn pci_info(handle: Handle) -> Result<PciInfo, i32> {
    let found = device(handle)?;
    if found.mig {
        return Err(code::INVALID_ARGUMENT);
    }
    let (pci, bus_id) = (found.spec.pci, found.spec.bus_id());
    Ok(PciInfo {
        bus_id_legacy: fixed(&bus_id),
        domain: pci.domain,
        bus: pci.bus,
        device: pci.device,
        device_id: 0x2000 << 16 | NVIDIA,
        subsystem_id: NVIDIA << 16 | NVIDIA,
        bus_id: fixed(&format!(
            "{:08X}{}",
            pci.domain,
            bus_id.get(4..).unwrap_or_default()
        )),
    })
}

fn count(to: *mut c_uint) -> Result<(), i32> {
    // SAFETY: `put` tests for null; else it is the caller's promise.
    unsafe {
        put(
            to,
            started()?.settings.nvml.len() as c_uint,
            code::INVALID_ARGUMENT,
        )
    }
}

fn by_index(index: c_uint, to: *mut Handle) -> Result<(), i32> {
    started()?;
    let found = super::by_index(index as usize).ok_or(code::INVALID_ARGUMENT)?;
    // SAFETY: as above.
    unsafe { put(to, found.handle(), code::INVALID_ARGUMENT) }
}

fn by_bus_id(id: *const c_char, to: *mut Handle) -> Result<(), i32> {
    started()?;
    // SAFETY: as above.
    unsafe {
        let address = text(id)
            .and_then(pci_of_text)
            .ok_or(code::INVALID_ARGUMENT)?;
        let found = devices()
            .find(|one| one.spec.pci == address)
            .ok_or(code::NOT_FOUND)?;
        put(to, found.handle(), code::INVALID_ARGUMENT)
    }
}

exported! { by super::answer;
    fn nvmlDeviceGetCount(to: *mut c_uint) {
        count(to)?;
    }

    fn nvmlDeviceGetCount_v2(to: *mut c_uint) {
        count(to)?;
    }

    fn nvmlDeviceGetHandleByIndex(index: c_uint, to: *mut Handle) {
        by_index(index, to)?;
    }

    fn nvmlDeviceGetHandleByIndex_v2(index: c_uint, to: *mut Handle) {
        by_index(index, to)?;
    }

    fn nvmlDeviceGetHandleByUUID(uuid: *const c_char, to: *mut Handle) {
        started()?;
        let uuid = text(uuid).ok_or(code::INVALID_ARGUMENT)?;
        let card = devices().find(|one| one.spec.uuid_text() == uuid).map(|one| one.handle());
        let instance = devices().find(|one| one.spec.mig_is_on() && one.spec.mig_uuid_text() == uuid);
        let found = card.or(instance.map(|one| one.handle() + MIG));
        put(to, found.ok_or(code::NOT_FOUND)?, code::INVALID_ARGUMENT)?;
    }

    fn nvmlDeviceGetHandleBySerial(serial: *const c_char, to: *mut Handle) {
        started()?;
        Err::<(), i32>(code::NOT_FOUND)?;
    }

    fn nvmlDeviceGetHandleByPciBusId(id: *const c_char, to: *mut Handle) {
        by_bus_id(id, to)?;
    }

    fn nvmlDeviceGetHandleByPciBusId_v2(id: *const c_char, to: *mut Handle) {
        by_bus_id(id, to)?;
    }

    fn nvmlDeviceGetName(handle: Handle, name: *mut c_char, length: c_uint) {
        let found = device(handle)?;
        let text = if found.mig { shown_name(found.spec) } else { found.spec.name.clone() };
        put_text(name, length as usize, &text, code::INVALID_ARGUMENT, Some(code::INSUFFICIENT_SIZE))?;
    }

    fn nvmlDeviceGetUUID(handle: Handle, uuid: *mut c_char, length: c_uint) {
        let found = device(handle)?;
        let text = if found.mig { found.spec.mig_uuid_text() } else { found.spec.uuid_text() };
        put_text(uuid, length as usize, &text, code::INVALID_ARGUMENT, Some(code::INSUFFICIENT_SIZE))?;
    }

    fn nvmlDeviceGetIndex(handle: Handle, index: *mut c_uint) {
        let found = device(handle)?;
        let number = if found.mig { 0 } else { found.index };
        put(index, number as c_uint, code::INVALID_ARGUMENT)?;
    }

    /// The number of `/dev/nvidiaN`: the driver counts by PCI address, as NVML does.
    fn nvmlDeviceGetMinorNumber(handle: Handle, minor: *mut c_uint) {
        put(minor, device(handle)?.index as c_uint, code::INVALID_ARGUMENT)?;
    }

    fn nvmlDeviceGetMultiGpuBoard(handle: Handle, several: *mut c_uint) {
        put(several, device(handle)?.spec.board.is_some().into(), code::INVALID_ARGUMENT)?;
    }

    /// A card of its own has a number, too: that of its place on the bus.
    fn nvmlDeviceGetBoardId(handle: Handle, id: *mut c_uint) {
        let spec = device(handle)?.spec;
        put(id, spec.board.unwrap_or(spec.pci.bus << 8), code::INVALID_ARGUMENT)?;
    }

    fn nvmlDeviceGetPciInfo(handle: Handle, info: *mut PciInfo) {
        put(info, pci_info(handle)?, code::INVALID_ARGUMENT)?;
    }

    fn nvmlDeviceGetPciInfo_v2(handle: Handle, info: *mut PciInfo) {
        put(info, pci_info(handle)?, code::INVALID_ARGUMENT)?;
    }

    fn nvmlDeviceGetPciInfo_v3(handle: Handle, info: *mut PciInfo) {
        put(info, pci_info(handle)?, code::INVALID_ARGUMENT)?;
    }

    fn nvmlDeviceGetMemoryInfo(handle: Handle, memory: *mut Memory) {
        let found = device(handle)?;
        let (free, total) = world().free_and_total(found.place);
        let total = total.saturating_add(found.spec.reserved_bytes);
        put(memory, Memory { total, free, used: total.saturating_sub(free) }, code::INVALID_ARGUMENT)?;
    }

    fn nvmlDeviceGetMemoryInfo_v2(handle: Handle, memory: *mut MemoryV2) {
        let found = device(handle)?;
        since(510)?;
        if memory.is_null() {
            return Err(code::INVALID_ARGUMENT);
        }
        if (*memory).version != MEMORY_V2 {
            return Err(code::VERSION_MISMATCH);
        }
        let (free, total) = world().free_and_total(found.place);
        let reserved = found.spec.reserved_bytes;
        let used = total.saturating_sub(free);
        let total = total.saturating_add(reserved);
        put(memory, MemoryV2 { version: MEMORY_V2, total, reserved, free, used }, code::INVALID_ARGUMENT)?;
    }

    fn nvmlDeviceGetCudaComputeCapability(handle: Handle, major: *mut c_int, minor: *mut c_int) {
        let found = device(handle)?;
        put(major, found.spec.major as c_int, code::INVALID_ARGUMENT)?;
        put(minor, found.spec.minor as c_int, code::INVALID_ARGUMENT)?;
    }

    /// 0: any number of processes may use it.
    fn nvmlDeviceGetComputeMode(handle: Handle, mode: *mut c_int) {
        device(handle)?;
        put(mode, 0, code::INVALID_ARGUMENT)?;
    }

    fn nvmlDeviceGetPersistenceMode(handle: Handle, mode: *mut c_int) {
        device(handle)?;
        put(mode, 1, code::INVALID_ARGUMENT)?;
    }

    /// `nvmlUtilization_t`: two percentages. Nothing is ever computed.
    fn nvmlDeviceGetUtilizationRates(handle: Handle, rates: *mut [c_uint; 2]) {
        device(handle)?;
        put(rates, [0, 0], code::INVALID_ARGUMENT)?;
    }
}
