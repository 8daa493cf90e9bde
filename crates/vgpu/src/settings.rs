//! What the environment says: the GPUs, the driver, and how calls are to go wrong.

use std::env;
use std::path::PathBuf;

use crate::faults::Faults;
use crate::spec::{self, Spec};
use crate::visible;

/// One H100, as the kit has always played when it is told nothing.
const DEFAULT_LIST: &str = "NVIDIA H100 80GB HBM3:81079MiB:9.0";
const DEFAULT_DRIVER: &str = "580.65.06";

/// First driver branch of each CUDA version, from NVIDIA's CUDA release notes (table of driver versions).
const CUDA_OF_BRANCH: [(u32, i32); 22] = [
    (410, 10000),
    (418, 10010),
    (440, 10020),
    (450, 11000),
    (455, 11010),
    (460, 11020),
    (465, 11030),
    (470, 11040),
    (495, 11050),
    (510, 11060),
    (515, 11070),
    (520, 11080),
    (525, 12000),
    (530, 12010),
    (535, 12020),
    (545, 12030),
    (550, 12040),
    (555, 12050),
    (560, 12060),
    (570, 12080),
    (575, 12090),
    (580, 13000),
];

/// The imaginary driver's version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Driver {
    /// As NVML prints it: `470.256.02`.
    pub text: String,
    /// 470
    pub branch: u32,
    /// As `cuDriverGetVersion` answers: 11040 for CUDA 11.4.
    pub cuda: i32,
}

impl Driver {
    /// `470.256` or, where the CUDA version is another than the branch's first, `470.256/11.4`.
    fn read(text: &str) -> Option<Self> {
        let (text, cuda) = match text.split_once('/') {
            Some((text, cuda)) => (text, Some(cuda)),
            None => (text, None),
        };
        let branch: u32 = text.split('.').next()?.parse().ok()?;
        let cuda = match cuda {
            Some(cuda) => {
                let (major, minor) = cuda.split_once('.').unwrap_or((cuda, "0"));
                let (major, minor): (u16, u8) = (major.parse().ok()?, minor.parse().ok()?);
                i32::from(major) * 1000 + i32::from(minor) * 10
            }
            None => CUDA_OF_BRANCH.iter().rev().find(|row| row.0 <= branch)?.1,
        };
        Some(Driver {
            text: text.to_owned(),
            branch,
            cuda,
        })
    }
}

/// Everything that the environment settles, once for a process.
#[derive(Debug)]
pub(crate) struct Settings {
    pub devices: Vec<Spec>,
    /// Places in `devices` of what CUDA shows, by CUDA's numbers.
    pub cuda: Vec<usize>,
    /// The same for NVML.
    pub nvml: Vec<usize>,
    pub driver: Driver,
    pub faults: Faults,
    pub state: Option<PathBuf>,
    pub peer: bool,
    pub trace: bool,
    pub report: bool,
    /// Refuse what does not fit.
    pub enforce: bool,
    /// NVML knows how much a process uses (it does not on Windows, nor in some virtual machines).
    pub process_memory: bool,
    /// NVML's process ids are larger by this: those of another namespace.
    pub pid_shift: u32,
}

impl Settings {
    /// What is wrong is said in the words of the variable that is wrong.
    pub fn from_environment() -> Result<Self, String> {
        let text = |name: &str| env::var_os(name).map(|value| value.to_string_lossy().into_owned());
        let on = |name: &str, default: bool| {
            text(name).map_or(default, |value| {
                value.trim().parse::<i64>().is_ok_and(|n| n != 0)
            })
        };
        let list = text("VGPU").unwrap_or_else(|| DEFAULT_LIST.to_owned());
        let mut devices = spec::devices(&list).map_err(|error| error.to_string())?;
        if let Some(free) = text("VGPU_FREE") {
            let sizes = free.split(',').filter(|size| !size.trim().is_empty());
            for (device, size) in devices.iter_mut().zip(sizes) {
                device.free_bytes =
                    spec::size_of_text(size).map_err(|error| format!("{error} in VGPU_FREE"))?;
            }
        }
        if text("VGPU_VMM").is_some() {
            let vmm = on("VGPU_VMM", true);
            devices.iter_mut().for_each(|device| device.vmm = vmm);
        }
        let driver = text("VGPU_DRIVER").unwrap_or_else(|| DEFAULT_DRIVER.to_owned());
        let driver = Driver::read(&driver)
            .ok_or_else(|| format!("bad VGPU_DRIVER '{driver}' (want 470.256 or 470.256/11.4)"))?;
        let faults = Faults::read(
            &text("VGPU_FAIL").unwrap_or_default(),
            &text("VGPU_HANG").unwrap_or_default(),
        )
        .map_err(|entry| {
            format!("bad entry '{entry}' in VGPU_FAIL or VGPU_HANG (want cuInit:100 and cuInit)")
        })?;
        let order = text("CUDA_DEVICE_ORDER");
        let visible = text("CUDA_VISIBLE_DEVICES");
        Ok(Settings {
            cuda: visible::by_cuda(&devices, order.as_deref(), visible.as_deref()),
            nvml: visible::by_bus(&devices),
            devices,
            driver,
            faults,
            state: text("VGPU_STATE")
                .filter(|path| !path.is_empty())
                .map(PathBuf::from),
            peer: on("VGPU_PEER", true),
            trace: on("VGPU_TRACE", false),
            report: text("VGPU_REPORT").is_some(),
            enforce: !on("VGPU_NO_OOM", false),
            process_memory: on("VGPU_PROCESS_MEMORY", true),
            pid_shift: text("VGPU_PID_SHIFT")
                .map_or(Ok(0), |n| n.trim().parse())
                .map_err(|_| "bad VGPU_PID_SHIFT (want a number)".to_owned())?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cuda_version_is_that_of_the_drivers_branch() {
        for (text, branch, cuda) in [
            ("470.256.02", 470, 11040),
            ("470.256", 470, 11040),
            ("550.54.15", 550, 12040),
            ("565.57.01/12.7", 565, 12070),
            ("999.1", 999, 13000),
        ] {
            let driver = Driver::read(text).expect(text);
            assert_eq!((driver.branch, driver.cuda), (branch, cuda), "{text}");
        }
        assert_eq!(Driver::read("new"), None);
        assert_eq!(Driver::read("340.108"), None);
    }
}
