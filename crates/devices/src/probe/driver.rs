//! The CUDA driver API, loaded at run time.
//!
//! A table of its own, of the few functions that a probe needs, and not cudarc's, for three reasons. cudarc
//! panics where the library or a symbol is missing, and a machine without a driver is an ordinary answer
//! here. Its results are a Rust enum of the codes of the CUDA version it was built for: with the oldest
//! version, which a K80's driver needs, every code that newer drivers have added (46, 805 and on) would be
//! an enum value that does not exist, which is undefined behaviour; here they are numbers. And it looks for
//! `libcuda.so` before `libcuda.so.1`, which on machines with a toolkit may be the toolkit's stub.
//!
//! Names and signatures are those of `cuda.h` 11.4, the last that Kepler's driver (470) knows. No function
//! here makes a context but [`Driver::free_in_context`].

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};

use libloading::Library;

use super::error::ProbeError;

/// `CUresult`, `CUdevice`, `CUcontext`.
type Code = c_int;
type DeviceHandle = c_int;
type Context = *mut c_void;

const SUCCESS: Code = 0;
const NO_DEVICE: Code = 100;

#[cfg(windows)]
const LIBRARIES: [&str; 1] = ["nvcuda.dll"];
#[cfg(not(windows))]
const LIBRARIES: [&str; 2] = ["libcuda.so.1", "libcuda.so"];

/// `CUdevice_attribute`.
#[derive(Clone, Copy, Debug)]
#[repr(i32)]
pub(super) enum Attribute {
    MultiprocessorCount = 16,
    Integrated = 18,
    ComputeCapabilityMajor = 75,
    ComputeCapabilityMinor = 76,
    VirtualMemoryManagement = 102,
}

/// The functions that are needed; those that an older driver may not have are optional.
struct Functions {
    init: unsafe extern "C" fn(c_uint) -> Code,
    driver_version: unsafe extern "C" fn(*mut c_int) -> Code,
    device_count: unsafe extern "C" fn(*mut c_int) -> Code,
    device_get: unsafe extern "C" fn(*mut DeviceHandle, c_int) -> Code,
    device_name: unsafe extern "C" fn(*mut c_char, c_int, DeviceHandle) -> Code,
    device_total: unsafe extern "C" fn(*mut usize, DeviceHandle) -> Code,
    device_attribute: unsafe extern "C" fn(*mut c_int, c_int, DeviceHandle) -> Code,
    device_uuid: Option<unsafe extern "C" fn(*mut [u8; 16], DeviceHandle) -> Code>,
    device_pci: Option<unsafe extern "C" fn(*mut c_char, c_int, DeviceHandle) -> Code>,
    error_name: Option<unsafe extern "C" fn(Code, *mut *const c_char) -> Code>,
    primary_retain: Option<unsafe extern "C" fn(*mut Context, DeviceHandle) -> Code>,
    primary_release: Option<unsafe extern "C" fn(DeviceHandle) -> Code>,
    push: Option<unsafe extern "C" fn(Context) -> Code>,
    pop: Option<unsafe extern "C" fn(*mut Context) -> Code>,
    memory_info: Option<unsafe extern "C" fn(*mut usize, *mut usize) -> Code>,
}

/// The driver, loaded and not yet initialised.
pub(super) struct Driver {
    functions: Functions,
}

impl Driver {
    /// Loads the library. The error is the loader's.
    pub(super) fn load() -> Result<Self, String> {
        let mut why = String::new();
        for name in LIBRARIES {
            // SAFETY: the driver's initialisers have no conditions; it is never unloaded, since it starts
            // threads of its own.
            match unsafe { Library::new(name) } {
                Ok(library) => return Self::from_library(Box::leak(Box::new(library))),
                Err(error) if why.is_empty() => why = error.to_string(),
                Err(_) => {}
            }
        }
        Err(why)
    }

    fn from_library(library: &'static Library) -> Result<Self, String> {
        fn needed<T: Copy>(library: &'static Library, name: &str) -> Result<T, String> {
            // SAFETY: each name is asked for with its type in cuda.h 11.4.
            unsafe { library.get::<T>(name.as_bytes()) }
                .map(|symbol| *symbol)
                .map_err(|error| error.to_string())
        }
        let functions = Functions {
            init: needed(library, "cuInit")?,
            driver_version: needed(library, "cuDriverGetVersion")?,
            device_count: needed(library, "cuDeviceGetCount")?,
            device_get: needed(library, "cuDeviceGet")?,
            device_name: needed(library, "cuDeviceGetName")?,
            device_total: needed(library, "cuDeviceTotalMem_v2")?,
            device_attribute: needed(library, "cuDeviceGetAttribute")?,
            // The second version gives a MIG instance's own UUID, the first the whole GPU's.
            device_uuid: needed(library, "cuDeviceGetUuid_v2")
                .or_else(|_| needed(library, "cuDeviceGetUuid"))
                .ok(),
            device_pci: needed(library, "cuDeviceGetPCIBusId").ok(),
            error_name: needed(library, "cuGetErrorName").ok(),
            primary_retain: needed(library, "cuDevicePrimaryCtxRetain").ok(),
            primary_release: needed(library, "cuDevicePrimaryCtxRelease_v2").ok(),
            push: needed(library, "cuCtxPushCurrent_v2").ok(),
            pop: needed(library, "cuCtxPopCurrent_v2").ok(),
            memory_info: needed(library, "cuMemGetInfo_v2").ok(),
        };
        Ok(Self { functions })
    }

    /// Starts the driver. `Ok(false)` where it has no GPU to show.
    pub(super) fn init(&self) -> Result<bool, ProbeError> {
        // SAFETY: the one argument has to be 0.
        match unsafe { (self.functions.init)(0) } {
            NO_DEVICE => Ok(false),
            code => self.check("cuInit", code).map(|()| true),
        }
    }

    /// The newest CUDA that the driver runs, as `11.4`; it need not have started.
    pub(super) fn cuda_version(&self) -> Option<String> {
        let mut version = 0;
        // SAFETY: `version` outlives the call.
        let code = unsafe { (self.functions.driver_version)(&mut version) };
        (code == SUCCESS && version > 0)
            .then(|| format!("{}.{}", version / 1000, version % 1000 / 10))
    }

    /// The devices that the driver shows.
    pub(super) fn devices(&self) -> Result<Vec<DriverDevice<'_>>, ProbeError> {
        let mut count = 0;
        // SAFETY: `count` outlives the call.
        let code = unsafe { (self.functions.device_count)(&mut count) };
        if code == NO_DEVICE {
            return Ok(Vec::new());
        }
        self.check("cuDeviceGetCount", code)?;
        (0..count).map(|index| self.device(index)).collect()
    }

    fn device(&self, index: c_int) -> Result<DriverDevice<'_>, ProbeError> {
        let mut handle = 0;
        // SAFETY: `handle` outlives the call.
        let code = unsafe { (self.functions.device_get)(&mut handle, index) };
        self.check("cuDeviceGet", code)?;
        Ok(DriverDevice {
            driver: self,
            handle,
        })
    }

    fn check(&self, call: &str, code: Code) -> Result<(), ProbeError> {
        match code {
            SUCCESS => Ok(()),
            code => Err(ProbeError::Driver {
                call: call.to_owned(),
                code,
                name: self.name_of(code),
            }),
        }
    }

    fn name_of(&self, code: Code) -> Option<String> {
        let name_of = self.functions.error_name?;
        let mut text = std::ptr::null();
        // SAFETY: `text` outlives the call, and becomes a constant of the driver's, or stays null.
        let answer = unsafe { name_of(code, &mut text) };
        if answer != SUCCESS || text.is_null() {
            return None;
        }
        // SAFETY: a C string, as of the call above.
        let text = unsafe { CStr::from_ptr(text) };
        Some(text.to_string_lossy().into_owned())
    }
}

/// A device that the driver has given a handle of.
pub(super) struct DriverDevice<'d> {
    driver: &'d Driver,
    handle: DeviceHandle,
}

impl DriverDevice<'_> {
    pub(super) fn name(&self) -> Result<String, ProbeError> {
        let mut text = [0u8; 256];
        // SAFETY: the buffer is as long as said, less one byte that stays 0, and outlives the call.
        let code = unsafe {
            (self.driver.functions.device_name)(text.as_mut_ptr().cast(), 255, self.handle)
        };
        self.driver.check("cuDeviceGetName", code)?;
        Ok(until_nul(&text))
    }

    /// What CUDA can have of the device's memory, bytes.
    pub(super) fn total_bytes(&self) -> Result<u64, ProbeError> {
        let mut bytes = 0;
        // SAFETY: `bytes` outlives the call.
        let code = unsafe { (self.driver.functions.device_total)(&mut bytes, self.handle) };
        self.driver.check("cuDeviceTotalMem", code)?;
        Ok(u64::try_from(bytes).unwrap_or(u64::MAX))
    }

    pub(super) fn attribute(&self, attribute: Attribute) -> Result<u32, ProbeError> {
        let mut value = 0;
        // SAFETY: `value` outlives the call; an attribute that the driver does not know is an error.
        let code = unsafe {
            (self.driver.functions.device_attribute)(&mut value, attribute as c_int, self.handle)
        };
        self.driver.check("cuDeviceGetAttribute", code)?;
        u32::try_from(value)
            .map_err(|_| ProbeError::Failed(format!("{attribute:?} is {value} on a device")))
    }

    pub(super) fn uuid(&self) -> Option<[u8; 16]> {
        let ask = self.driver.functions.device_uuid?;
        let mut uuid = [0; 16];
        // SAFETY: `CUuuid` is 16 bytes, which outlive the call.
        let code = unsafe { ask(&mut uuid, self.handle) };
        // Jetson's driver answers zeros.
        (code == SUCCESS && uuid != [0; 16]).then_some(uuid)
    }

    /// As `0000:05:00.0`, in small letters.
    pub(super) fn pci_id(&self) -> Option<String> {
        let ask = self.driver.functions.device_pci?;
        let mut text = [0u8; 32];
        // SAFETY: the buffer is as long as said, less one byte that stays 0, and outlives the call.
        let code = unsafe { ask(text.as_mut_ptr().cast(), 31, self.handle) };
        let id = until_nul(&text).to_ascii_lowercase();
        (code == SUCCESS && !id.is_empty()).then_some(id)
    }

    /// What is free as a process with a context sees it: makes the device's primary context, asks, and gives it
    /// back. Takes some hundred MB of the device meanwhile.
    pub(super) fn free_in_context(&self) -> Result<u64, ProbeError> {
        let functions = &self.driver.functions;
        let (Some(retain), Some(release), Some(push), Some(pop), Some(info)) = (
            functions.primary_retain,
            functions.primary_release,
            functions.push,
            functions.pop,
            functions.memory_info,
        ) else {
            return Err(ProbeError::Failed("the driver is too old".to_owned()));
        };
        let check = |call, code| self.driver.check(call, code);
        let mut context = std::ptr::null_mut();
        // SAFETY: `context` outlives the call.
        let code = unsafe { retain(&mut context, self.handle) };
        check("cuDevicePrimaryCtxRetain", code)?;
        let (mut free, mut total) = (0, 0);
        // SAFETY: the context is retained until the end of the block, where every push has its pop, and the
        // numbers outlive their call.
        let asked = unsafe {
            let asked = check("cuCtxPushCurrent", push(context)).and_then(|()| {
                let asked = check("cuMemGetInfo", info(&mut free, &mut total));
                pop(&mut context);
                asked
            });
            release(self.handle);
            asked
        };
        asked.map(|()| u64::try_from(free).unwrap_or(u64::MAX))
    }
}

/// A C string in a buffer, or all of the buffer.
fn until_nul(text: &[u8]) -> String {
    let text = text.split(|&byte| byte == 0).next().unwrap_or(text);
    String::from_utf8_lossy(text).trim().to_owned()
}

#[cfg(test)]
mod tests {
    #[test]
    fn names_end_at_their_nul() {
        assert_eq!(super::until_nul(b"Tesla K80 \0\xff\xff"), "Tesla K80");
        assert_eq!(super::until_nul(b"Tesla"), "Tesla");
        assert_eq!(super::until_nul(b""), "");
    }
}
