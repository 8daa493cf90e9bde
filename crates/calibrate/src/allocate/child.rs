//! The process that takes the buffers: CUDA's driver through cudarc, NVML beside it.

use std::collections::BTreeSet;
use std::ffi::c_int;
use std::io::{self, Write};

use cudarc::driver::{DriverError, result, sys};
use nvml_wrapper::Nvml;
use vramfit::devices::nvml;

use super::{DeviceAllocation, Step, Taken, What, Word};

/// What `ggml-cuda` reserves of address space for its pool.
const POOL_ADDRESSES: usize = 1 << 35;

/// The process's whole life; its argument is its parent.
pub fn child() -> ! {
    let parent = std::env::args().nth(2).and_then(|p| p.parse::<i32>().ok());
    let dies = rustix::process::Signal::KILL;
    let _ = rustix::process::set_parent_process_death_signal(Some(dies));
    let own = rustix::process::getppid().map(|pid| pid.as_raw_nonzero().get());
    if own != parent {
        std::process::exit(1);
    }
    // cudarc panics where what it takes for the driver lacks a function: a toolkit's stub, say, that is found first
    std::panic::set_hook(Box::new(|info| {
        let words = info.payload().downcast_ref::<String>().map(String::as_str);
        let words = words.or(info.payload().downcast_ref::<&str>().copied());
        let why = words.unwrap_or("it cannot be used");
        say(&Word::Failed(format!(
            "the CUDA driver that is found first (libcuda.so, libcuda.so.1) is not one: {why}; \
             set LD_LIBRARY_PATH to the driver's own folder"
        )));
        std::process::exit(0);
    }));
    let mut line = String::new();
    let asked = io::stdin().read_line(&mut line).map_err(|e| e.to_string());
    let steps = asked.and_then(|_| serde_json::from_str(&line).map_err(|e| e.to_string()));
    let steps: Result<Vec<Step>, String> = steps;
    let word = match steps.and_then(|steps| take(&steps)) {
        Ok(devices) => Word::Devices(devices),
        Err(reason) => Word::Failed(reason),
    };
    say(&word);
    // The driver gives everything back when the process ends.
    std::process::exit(0);
}

fn say(word: &Word) {
    if let Ok(line) = serde_json::to_string(word) {
        let mut out = io::stdout();
        let _ = writeln!(out, "{line}").and_then(|()| out.flush());
    }
}

fn in_words(what: &str) -> impl Fn(DriverError) -> String {
    let what = what.to_string();
    move |error| {
        let name = error.error_name().map(|name| name.to_string_lossy());
        let name = name.map_or_else(|_| format!("{:?}", error.0), |name| name.into_owned());
        format!("{what}: {name}")
    }
}

/// A GPU with a context of this process.
struct Opened {
    index: usize,
    device: sys::CUdevice,
    context: sys::CUcontext,
    about: DeviceAllocation,
}

fn take(steps: &[Step]) -> Result<Vec<DeviceAllocation>, String> {
    // SAFETY: a library is loaded and let go of again.
    if !unsafe { sys::is_culib_present() } {
        return Err("no CUDA driver (libcuda.so) on this machine".to_string());
    }
    result::init().map_err(in_words("cuInit"))?;
    let nvml = Nvml::init().ok();
    let used: BTreeSet<usize> = steps.iter().map(|step| step.device).collect();
    let mut opened = Vec::new();
    for index in used {
        opened.push(open(index, nvml.as_ref())?);
    }
    for &step in steps {
        let Some(on) = opened.iter().find(|o| o.index == step.device) else {
            continue;
        };
        let taken = take_one(on, step)?;
        let refused = taken.refused.is_some();
        say(&Word::Taken(taken));
        if refused {
            break;
        }
    }
    for on in &mut opened {
        on.about.nvml_after_bytes = used_bytes(nvml.as_ref(), &on.about.uuid);
        on.about.nvml_process_bytes = own_bytes(nvml.as_ref(), &on.about.uuid);
    }
    Ok(opened.into_iter().map(|on| on.about).collect())
}

fn open(index: usize, nvml: Option<&Nvml>) -> Result<Opened, String> {
    let words = format!("CUDA{index}");
    let ordinal = c_int::try_from(index).map_err(|e| e.to_string())?;
    let device = result::device::get(ordinal).map_err(in_words(&words))?;
    let name = result::device::get_name(device).map_err(in_words(&words))?;
    let mut uuid = sys::CUuuid { bytes: [0; 16] };
    // The first version of the call names the whole card where this is an instance of it.
    // SAFETY: the device is one that the driver has just named, and `uuid` outlives the call.
    let asked = unsafe { sys::cuDeviceGetUuid_v2(&mut uuid, device) };
    asked.result().map_err(in_words(&words))?;
    let mut about = DeviceAllocation {
        device: index,
        name,
        uuid: uuid_text(nvml, &uuid),
        ..DeviceAllocation::default()
    };
    about.nvml_before_bytes = used_bytes(nvml, &about.uuid);
    // SAFETY: the device is one that the driver has just named.
    let context = unsafe { result::primary_ctx::retain(device) };
    let context = context.map_err(in_words(&format!("a context on {words}")))?;
    let mut opened = Opened {
        index,
        device,
        context,
        about,
    };
    let (free, total) = free_and_total(&opened)?;
    opened.about.free_with_context_bytes = free;
    opened.about.total_bytes = total;
    opened.about.nvml_with_context_bytes = used_bytes(nvml, &opened.about.uuid);
    Ok(opened)
}

fn free_and_total(on: &Opened) -> Result<(u64, u64), String> {
    let words = format!("CUDA{}", on.index);
    // SAFETY: the context is held until the process ends.
    unsafe { result::ctx::set_current(on.context) }.map_err(in_words(&words))?;
    let (free, total) = result::mem_get_info().map_err(in_words(&words))?;
    Ok((free as u64, total as u64))
}

fn take_one(on: &Opened, step: Step) -> Result<Taken, String> {
    let (free_before_bytes, _) = free_and_total(on)?;
    let bytes = usize::try_from(step.bytes).map_err(|e| e.to_string())?;
    let had = match step.what {
        What::Pool => pool(on.device, bytes),
        // SAFETY: plain device memory that nothing reads or writes, given back by the process's end.
        _ => unsafe { result::malloc_sync(bytes) }.map(drop),
    };
    let (free_after_bytes, _) = free_and_total(on)?;
    Ok(Taken {
        step,
        free_before_bytes,
        free_after_bytes,
        refused: had.err().map(|e| in_words("the driver refuses")(e)),
    })
}

/// As `ggml_cuda_pool_vmm` grows: addresses first, then memory behind them, in whole granules; a plain allocation where
/// the device cannot map memory by itself.
fn pool(device: sys::CUdevice, bytes: usize) -> Result<(), DriverError> {
    use sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_VIRTUAL_ADDRESS_MANAGEMENT_SUPPORTED as VMM;
    // SAFETY: plain calls of the driver with addresses that it has given; nothing reads or writes the memory.
    unsafe {
        if result::device::get_attribute(device, VMM)? == 0 {
            return result::malloc_sync(bytes).map(drop);
        }
        let mut prop: sys::CUmemAllocationProp = std::mem::zeroed();
        prop.type_ = sys::CUmemAllocationType::CU_MEM_ALLOCATION_TYPE_PINNED;
        prop.location.type_ = sys::CUmemLocationType::CU_MEM_LOCATION_TYPE_DEVICE;
        prop.location.id = device;
        let mut granularity = 0;
        // of the two that there are, the one that ggml-cuda asks for
        let which = sys::CUmemAllocationGranularity_flags::CU_MEM_ALLOC_GRANULARITY_RECOMMENDED;
        sys::cuMemGetAllocationGranularity(&mut granularity, &prop, which).result()?;
        let size = bytes.next_multiple_of(granularity.max(1));
        let mut address = 0;
        sys::cuMemAddressReserve(&mut address, size.max(POOL_ADDRESSES), 0, 0, 0).result()?;
        let mut handle = 0;
        sys::cuMemCreate(&mut handle, size, &prop, 0).result()?;
        sys::cuMemMap(address, size, 0, handle, 0).result()?;
        let access = sys::CUmemAccessDesc {
            location: prop.location,
            flags: sys::CUmemAccess_flags::CU_MEM_ACCESS_FLAGS_PROT_READWRITE,
        };
        sys::cuMemSetAccess(address, size, &access, 1).result()
    }
}

fn used_bytes(nvml: Option<&Nvml>, uuid: &str) -> Option<u64> {
    let nvml = nvml?;
    let device = nvml.device_by_uuid(uuid).ok()?;
    crate::watch::used_on(nvml, &device)
}

/// What NVML shows of this very process; nothing inside a container with process ids of its own.
fn own_bytes(nvml: Option<&Nvml>, uuid: &str) -> Option<u64> {
    let device = nvml?.device_by_uuid(uuid).ok()?;
    let own = std::process::id();
    let all = crate::watch::processes_on(&device);
    all.into_iter()
        .find(|p| p.pid == own)
        .and_then(|p| p.used_bytes)
}

/// As NVML writes it: `GPU-8f3e5d02-..`, of an instance `MIG-8f3e5d02-..`.
fn uuid_text(nvml: Option<&Nvml>, uuid: &sys::CUuuid) -> String {
    let bytes = uuid.bytes.map(|byte| byte as u8);
    let [card, instance] = ["GPU", "MIG"].map(|kind| nvml::uuid_text(kind, &bytes));
    let knows = |uuid: &String| nvml.is_some_and(|n| n.device_by_uuid(uuid.as_str()).is_ok());
    match !knows(&card) && knows(&instance) {
        true => instance,
        false => card,
    }
}
