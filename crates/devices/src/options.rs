//! The options of one `--gpus` entry: `:free=9GiB:cc=8.6`.

use crate::bytes::{Decimal, parse_bytes};
use crate::facts::Facts;
use crate::gpus::GpusError;
use crate::lookup::{shortened, squash};
use vramfit_ggml::ComputeCapability;
use vramfit_ggml::cuda::PoolKind;

const VMM_VALUES: &str =
    "write 0 for a card, driver or build without virtual memory management, else 1";

/// What is free on a device.
#[derive(Clone, Copy)]
pub(crate) enum Free {
    Bytes(u64),
    /// `free=80%`: bytes of the total, times this over `10^scale` over 100.
    Percent {
        digits: u128,
        scale: u32,
    },
}

/// What follows a card's name, read but not yet applied.
#[derive(Default)]
pub(crate) struct Options {
    pub(crate) free: Option<Free>,
    pub(crate) total_bytes: Option<u64>,
    pub(crate) compute_capability: Option<ComputeCapability>,
    sm_count: Option<u32>,
    pool: Option<PoolKind>,
    name: Option<String>,
}

impl Options {
    /// Reads the parts after the first colon of `entry`.
    pub(crate) fn read<'a>(
        entry: &str,
        parts: impl Iterator<Item = &'a str>,
    ) -> Result<Self, GpusError> {
        let mut options = Self::default();
        for part in parts {
            let (key, value) = part.split_once('=').unwrap_or((part, ""));
            let value = value.trim();
            match squash(key).as_str() {
                "free" => set(entry, "free", &mut options.free, read_free(entry, value)?)?,
                "total" => {
                    let bytes = read_total(entry, "total", value)?;
                    set(entry, "total", &mut options.total_bytes, bytes)?;
                }
                "size" => {
                    let bytes = read_total(entry, "size", value)?;
                    set(entry, "size", &mut options.total_bytes, bytes)?;
                }
                "cc" => {
                    let capability = read_capability(value).ok_or_else(|| {
                        refused(entry, "cc", value, "write a compute capability as 8.6")
                    })?;
                    set(entry, "cc", &mut options.compute_capability, capability)?;
                }
                "sms" => {
                    let sms = read_sms(value).ok_or_else(|| {
                        refused(entry, "sms", value, "write a number from 1 to 1024")
                    })?;
                    set(entry, "sms", &mut options.sm_count, sms)?;
                }
                "vmm" => {
                    let pool = match value {
                        "0" => PoolKind::Legacy,
                        "1" => PoolKind::Vmm,
                        _ => return Err(refused(entry, "vmm", value, VMM_VALUES)),
                    };
                    set(entry, "vmm", &mut options.pool, pool)?;
                }
                "name" => {
                    if value.is_empty() || value.chars().count() > 80 {
                        return Err(refused(entry, "name", value, "write 1 to 80 characters"));
                    }
                    set(entry, "name", &mut options.name, value.to_owned())?;
                }
                _ => {
                    return Err(GpusError::UnknownOption {
                        entry: shortened(entry),
                        option: shortened(part),
                    });
                }
            }
        }
        Ok(options)
    }

    /// The device with what the options say of it.
    pub(crate) fn apply(self, entry: &str, mut device: Facts) -> Result<Facts, GpusError> {
        if let Some(total_bytes) = self.total_bytes {
            device.total_bytes = total_bytes;
            device.driver_keeps_some = true;
        }
        device.free_bytes = match self.free {
            None => None,
            // As measured, so without what the driver keeps.
            Some(Free::Bytes(bytes)) => {
                device.driver_keeps_some = false;
                Some(bytes)
            }
            Some(Free::Percent { digits, scale }) => {
                let of_total = Decimal { digits, scale }.times(device.total_bytes);
                let bytes = u64::try_from(of_total.unwrap_or(u128::MAX) / 100);
                Some(bytes.unwrap_or(u64::MAX))
            }
        };
        if let Some(free_bytes) = device.free_bytes.filter(|&free| free > device.total_bytes) {
            return Err(GpusError::FreeAboveTotal {
                entry: shortened(entry),
                free_bytes,
                total_bytes: device.total_bytes,
            });
        }
        if let Some(capability) = self.compute_capability {
            device.compute_capability = capability;
        }
        if self.sm_count.is_some() {
            device.sm_count = self.sm_count;
        }
        if let Some(pool) = self.pool {
            device.pool = pool;
        }
        if let Some(name) = self.name {
            device.name = name;
        }
        Ok(device)
    }
}

fn set<T>(
    entry: &str,
    option: &'static str,
    slot: &mut Option<T>,
    value: T,
) -> Result<(), GpusError> {
    if slot.replace(value).is_some() {
        return Err(GpusError::OptionTwice {
            entry: shortened(entry),
            option,
        });
    }
    Ok(())
}

fn refused(entry: &str, option: &'static str, value: &str, expected: &'static str) -> GpusError {
    GpusError::Value {
        entry: shortened(entry),
        option,
        value: shortened(value),
        expected,
    }
}

fn read_size(entry: &str, option: &'static str, value: &str) -> Result<u64, GpusError> {
    match parse_bytes(value) {
        Ok(size) => Ok(size.bytes),
        Err(source) => Err(GpusError::Size {
            entry: shortened(entry),
            option,
            source,
        }),
    }
}

fn read_total(entry: &str, option: &'static str, value: &str) -> Result<u64, GpusError> {
    match read_size(entry, option, value)? {
        0 => Err(refused(entry, option, value, "a device has some memory")),
        bytes => Ok(bytes),
    }
}

fn read_free(entry: &str, value: &str) -> Result<Free, GpusError> {
    let Some(percent) = value.strip_suffix('%') else {
        return read_size(entry, "free", value).map(Free::Bytes);
    };
    let expected = "write a percentage from 0% to 100%";
    match Decimal::parse(percent.trim()) {
        Some(number) if number.digits <= 100 * 10u128.pow(number.scale) => Ok(Free::Percent {
            digits: number.digits,
            scale: number.scale,
        }),
        _ => Err(refused(entry, "free", value, expected)),
    }
}

fn read_sms(value: &str) -> Option<u32> {
    let sms = value.parse().ok()?;
    (1..=1024).contains(&sms).then_some(sms)
}

/// `major.minor` with a major of 1 to 99 and a one-digit minor.
fn read_capability(value: &str) -> Option<ComputeCapability> {
    let all_digits = |part: &str| part.bytes().all(|b| b.is_ascii_digit());
    let (major, minor) = value.split_once('.')?;
    let sane = (1..=2).contains(&major.len()) && minor.len() == 1;
    let read = || value.parse::<ComputeCapability>().ok();
    (sane && all_digits(major) && all_digits(minor))
        .then(read)
        .flatten()
        .filter(|capability| capability.0 >= 100)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn compute_capabilities_are_read_as_the_driver_shows_them() {
        for good in ["3.7", "8.6", "12.1"] {
            let shown = read_capability(good).map(|capability| capability.to_string());
            assert_eq!(shown.as_deref(), Some(good));
        }
        for bad in [
            "", "8", "8.", ".6", "86", "8.66", "0.5", "100.0", "-8.6", "+8.6", "8.6a", "8.٦",
        ] {
            assert_eq!(read_capability(bad), None, "{bad:?}");
        }
    }
}
