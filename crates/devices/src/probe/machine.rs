//! What a probe finds.

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use vramfit_ggml::ComputeCapability;

use super::notes::ProbeNote;
use crate::gpus::MAX_DEVICES;

/// The GPUs of a machine, as a probe has found them.
#[non_exhaustive]
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Machine {
    /// The driver's version, as `470.256.02`, where NVML says it.
    pub driver: Option<String>,
    /// The newest CUDA that the driver can run, as `11.4`.
    pub cuda: Option<String>,
    /// What CUDA shows, in its order.
    pub devices: Vec<ProbedDevice>,
    /// What is not known, or not as it usually is.
    pub notes: Vec<ProbeNote>,
}

/// A GPU, or an instance of one, as CUDA counts devices.
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ProbedDevice {
    /// CUDA's index: 0 is llama.cpp's CUDA0.
    pub cuda_index: u32,
    /// NVML's and `nvidia-smi`'s index; of a MIG instance the whole GPU's.
    pub nvml_index: Option<u32>,
    /// As `GPU-8f3e...` or `MIG-8f3e...`.
    pub uuid: Option<String>,
    /// As `0000:05:00.0`.
    pub pci_id: Option<String>,
    /// As the driver calls it.
    pub name: String,
    /// All the memory that CUDA can have, bytes.
    pub total_bytes: u64,
    /// All its memory as NVML and `nvidia-smi` count it, bytes: more by what the driver keeps.
    pub nvml_total_bytes: Option<u64>,
    /// What the driver keeps, where NVML says it, bytes.
    pub reserved_bytes: Option<u64>,
    /// What is free now.
    pub free: Option<FreeMemory>,
    /// Taken by all processes together, bytes. The probe itself takes nothing.
    pub used_bytes: Option<u64>,
    /// Who takes it, by process id; ids are those of the host, also inside a container.
    pub processes: Option<Vec<ProcessUse>>,
    /// Decides which kernels run: `8.6`.
    #[serde(serialize_with = "as_text", deserialize_with = "from_text")]
    #[schemars(with = "String")]
    pub compute_capability: ComputeCapability,
    /// Streaming multiprocessors.
    pub sm_count: Option<u32>,
    /// Shares the host's memory.
    pub integrated: bool,
    /// CUDA can map memory by itself, which decides the kind of llama.cpp's runtime pool.
    pub virtual_memory: Option<bool>,
    /// A MIG instance.
    pub is_mig: bool,
    /// Devices of the same number sit on one physical board; none for a board of its own.
    pub board: Option<u32>,
}

/// What is free on a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct FreeMemory {
    /// Bytes, at most the device's total.
    pub bytes: u64,
    /// Who says so.
    pub from: FreeFrom,
}

/// Who says what is free.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[non_exhaustive]
#[serde(rename_all = "snake_case")]
pub enum FreeFrom {
    /// NVML.
    Nvml,
    /// The system's `MemAvailable`, of an integrated GPU.
    System,
    /// `cuMemGetInfo`, from inside a context made for it, which takes memory itself.
    Context,
}

/// A process on a GPU.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
pub struct ProcessUse {
    /// Its id on the host.
    pub pid: u32,
    /// What it takes, bytes; unknown where the system hides it.
    pub used_bytes: Option<u64>,
}

impl Machine {
    /// What another process says of the machine, held against what a machine can be.
    pub(super) fn checked(mut self) -> Result<Self, String> {
        if self.devices.len() > MAX_DEVICES {
            return Err(format!("{} devices are too many", self.devices.len()));
        }
        for (index, device) in self.devices.iter_mut().enumerate() {
            if u32::try_from(index) != Ok(device.cuda_index) {
                return Err(format!(
                    "device {index} calls itself CUDA{}",
                    device.cuda_index
                ));
            }
            if device.total_bytes == 0 {
                return Err(format!("CUDA{index} has no memory"));
            }
            if device.compute_capability.0 < 100 {
                return Err(format!(
                    "CUDA{index} has compute capability {}",
                    device.compute_capability
                ));
            }
            if let Some(free) = &mut device.free {
                free.bytes = free.bytes.min(device.total_bytes);
            }
        }
        Ok(self)
    }
}

fn as_text<S: Serializer>(capability: &ComputeCapability, to: S) -> Result<S::Ok, S::Error> {
    to.collect_str(capability)
}

fn from_text<'de, D: Deserializer<'de>>(from: D) -> Result<ComputeCapability, D::Error> {
    let text = String::deserialize(from)?;
    text.parse().map_err(serde::de::Error::custom)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::probe) fn k80(cuda_index: u32, board: Option<u32>) -> ProbedDevice {
        ProbedDevice {
            cuda_index,
            nvml_index: Some(cuda_index),
            uuid: Some(format!(
                "GPU-0000000{cuda_index}-1111-2222-3333-444444444444"
            )),
            pci_id: Some(format!("0000:0{}:00.0", cuda_index + 5)),
            name: "Tesla K80".to_owned(),
            total_bytes: 11_441 << 20,
            nvml_total_bytes: Some(11_441 << 20),
            reserved_bytes: None,
            free: Some(FreeMemory {
                bytes: 10_000 << 20,
                from: FreeFrom::Nvml,
            }),
            used_bytes: Some(1_441 << 20),
            processes: Some(vec![ProcessUse {
                pid: 77,
                used_bytes: Some(1_441 << 20),
            }]),
            compute_capability: ComputeCapability::new(3, 7),
            sm_count: Some(13),
            integrated: false,
            virtual_memory: Some(false),
            is_mig: false,
            board,
        }
    }

    #[test]
    fn machines_pass_between_processes() {
        let machine = Machine {
            driver: Some("470.256.02".to_owned()),
            cuda: Some("11.4".to_owned()),
            devices: vec![k80(0, Some(0)), k80(1, Some(0))],
            notes: vec![ProbeNote::SharedMemory { device: 1 }],
        };
        let text = serde_json::to_string(&machine).unwrap();
        assert!(text.contains(r#""compute_capability":"3.7""#), "{text}");
        let read: Machine = serde_json::from_str(&text).unwrap();
        assert_eq!(read.clone().checked(), Ok(machine));
    }

    #[test]
    fn machines_that_cannot_be_are_refused() {
        let check = |change: &dyn Fn(&mut ProbedDevice), expected: &str| {
            let mut device = k80(0, None);
            change(&mut device);
            let machine = Machine {
                devices: vec![device],
                ..Machine::default()
            };
            assert_eq!(machine.checked().unwrap_err(), expected);
        };
        check(&|d| d.cuda_index = 3, "device 0 calls itself CUDA3");
        check(&|d| d.total_bytes = 0, "CUDA0 has no memory");
        check(
            &|d| d.compute_capability = ComputeCapability(0),
            "CUDA0 has compute capability 0.0",
        );
        let mut device = k80(0, None);
        device.free = Some(FreeMemory {
            bytes: u64::MAX,
            from: FreeFrom::Nvml,
        });
        let machine = Machine {
            devices: vec![device],
            ..Machine::default()
        };
        let free = machine.checked().unwrap().devices[0].free.unwrap();
        assert_eq!(free.bytes, 11_441 << 20);
        let machine = Machine {
            devices: (0..65).map(|i| k80(i, None)).collect(),
            ..Machine::default()
        };
        assert_eq!(machine.checked().unwrap_err(), "65 devices are too many");
    }
}
