//! `CUdevice_attribute`: numbers of `cuda.h`, values of an imaginary card.

use super::code;
use crate::spec::Spec;

/// The highest attribute that the newest header knows, about; an unknown one below it is 0.
const LAST: i32 = 160;

/// The value of one attribute.
pub(crate) fn of(spec: &Spec, attribute: i32) -> Result<i32, i32> {
    let capability = spec.major * 10 + spec.minor;
    let int = |value: u64| i32::try_from(value).unwrap_or(i32::MAX);
    Ok(match attribute {
        1..=3 => 1024,     // threads of a block, block x, y
        4 => 64,           // block z
        5 => i32::MAX,     // grid x
        6 | 7 => 65_535,   // grid y, z
        8 => 49_152,       // shared memory of a block
        9 => 65_536,       // constant memory
        10 => 32,          // warp
        11 => i32::MAX,    // pitch
        12 | 82 => 65_536, // registers of a block, of a multiprocessor
        13 => 1_500_000,   // clock, kHz
        14 | 51 => 512,    // alignment of textures
        16 => int(spec.sms.into()),
        18 => spec.integrated.into(),
        15 | 19 | 31 | 41 | 78 | 79 | 80 | 83 | 89 | 91 | 99 => 1, // overlap, mapped host memory, concurrent kernels, ..
        33 => int(spec.pci.bus.into()),
        34 => int(spec.pci.device.into()),
        36 => 5_000_000, // memory clock, kHz
        37 => 384,       // memory bus, bits
        38 => 4 << 20,   // L2
        39 => 2048,      // threads of a multiprocessor
        40 => 2,         // copy engines
        50 => int(spec.pci.domain.into()),
        75 => int(spec.major.into()),
        76 => int(spec.minor.into()),
        81 => int(spec.smem_optin + 1024), // shared memory of a multiprocessor
        90 | 95 => (spec.major >= 6).into(), // preemption, cooperative launches
        97 => int(spec.smem_optin),
        102 | 103 | 115 => spec.vmm.into(), // virtual memory, handles of it, memory pools
        106 => 16,                          // blocks of a multiprocessor
        111 => {
            if capability >= 80 {
                1024
            } else {
                0
            }
        } // shared memory that the driver keeps of a block
        134 => -1,                          // NUMA node of the host: none
        other if (1..LAST).contains(&other) => 0,
        _ => return Err(code::INVALID_VALUE),
    })
}
