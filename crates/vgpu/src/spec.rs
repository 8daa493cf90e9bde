//! One imaginary GPU, and the text that says what it is: `name:SIZE:CC[:key=value]...`.

use thiserror::Error;

/// Compute capability, multiprocessors, shared memory that a block may opt in to.
const BY_CAPABILITY: [(u32, u32, u64); 21] = [
    (35, 15, 49152),
    (37, 13, 49152),
    (50, 5, 49152),
    (52, 24, 49152),
    (53, 1, 49152),
    (60, 56, 49152),
    (61, 20, 49152),
    (62, 2, 49152),
    (70, 80, 98304),
    (72, 8, 98304),
    (75, 40, 65536),
    (80, 108, 166_912),
    (86, 82, 101_376),
    (87, 16, 166_912),
    (89, 128, 101_376),
    (90, 132, 232_448),
    (100, 148, 232_448),
    (103, 148, 232_448),
    (110, 20, 232_448),
    (120, 170, 101_376),
    (121, 48, 101_376),
];
const UNKNOWN: (u32, u64) = (80, 101_376);

/// Compute capabilities of cards that can be cut into MIG instances.
const MIG_CAPABLE: [u32; 4] = [80, 90, 100, 103];

/// As many as NVML's own tools expect to see on one host, and more.
pub(crate) const MOST_DEVICES: usize = 64;

/// Why a list of GPUs cannot be played.
#[derive(Debug, Error, PartialEq, Eq)]
pub(crate) enum SpecError {
    #[error("bad device '{0}' in VGPU (want name:SIZE:CC)")]
    Device(String),
    #[error(
        "bad field '{0}' in VGPU (want free=, sms=, vmm=, smem=, integrated=, uuid=, pci=, context=, reserved=, granularity=, mig= or board=)"
    )]
    Field(String),
    #[error("bad size '{0}' (want a number and KiB, MiB, GiB, TiB, MB or GB)")]
    Size(String),
    #[error("two GPUs have the {0}")]
    Twice(String),
}

/// Where a GPU sits on the PCI bus.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct PciAddress {
    pub domain: u32,
    pub bus: u32,
    pub device: u32,
}

/// What one imaginary GPU is. Sizes are in bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Spec {
    pub name: String,
    /// As CUDA sees it; NVML adds `reserved_bytes`.
    pub total_bytes: u64,
    /// Free before any imaginary process takes something.
    pub free_bytes: u64,
    pub major: u32,
    pub minor: u32,
    pub sms: u32,
    pub vmm: bool,
    pub integrated: bool,
    pub smem_optin: u64,
    pub uuid: [u8; 16],
    pub pci: PciAddress,
    /// What a context takes on the card.
    pub context_bytes: u64,
    /// What the driver keeps for itself.
    pub reserved_bytes: u64,
    /// To this the driver rounds what an allocation takes; what was asked for is still what is counted as asked.
    pub granularity: u64,
    /// MIG is on and the card is one instance; `None` where the card has no MIG.
    pub mig: Option<bool>,
    /// The number of a board that carries several GPUs; `None` for a card of its own.
    pub board: Option<u32>,
}

impl Spec {
    pub fn uuid_text(&self) -> String {
        format!("GPU-{}", hex_groups(&self.uuid))
    }

    /// The one MIG instance's own UUID: another first byte, so that it is no card's.
    pub fn mig_uuid(&self) -> [u8; 16] {
        let mut uuid = self.uuid;
        uuid[0] ^= 0xff;
        uuid
    }

    pub fn mig_uuid_text(&self) -> String {
        format!("MIG-{}", hex_groups(&self.mig_uuid()))
    }

    /// As CUDA writes it, `0000:3B:00.0`.
    pub fn bus_id(&self) -> String {
        let PciAddress {
            domain,
            bus,
            device,
        } = self.pci;
        format!("{domain:04X}:{bus:02X}:{device:02X}.0")
    }

    pub fn mig_is_on(&self) -> bool {
        self.mig == Some(true)
    }

    fn new(name: &str, size: &str, capability: &str) -> Result<Self, SpecError> {
        let (major, minor) = capability.split_once('.').unwrap_or((capability, "0"));
        let (Ok(major), Ok(minor)) = (major.parse::<u32>(), minor.parse::<u32>()) else {
            return Err(SpecError::Device(name.to_owned()));
        };
        let total_bytes = size_of_text(size)?;
        if total_bytes == 0 || major == 0 || major > 99 || minor > 9 {
            return Err(SpecError::Device(name.to_owned()));
        }
        let number = major * 10 + minor;
        let (sms, smem_optin) = BY_CAPABILITY
            .iter()
            .find(|row| row.0 == number)
            .map_or(UNKNOWN, |row| (row.1, row.2));
        Ok(Spec {
            name: name.to_owned(),
            total_bytes,
            free_bytes: total_bytes,
            major,
            minor,
            sms,
            vmm: true, // recent drivers report virtual memory management for every device
            integrated: false,
            smem_optin,
            uuid: [0; 16],
            pci: PciAddress {
                domain: 0,
                bus: 0,
                device: 0,
            },
            context_bytes: 0,
            reserved_bytes: 0,
            granularity: 1,
            mig: MIG_CAPABLE.contains(&number).then_some(false),
            board: None,
        })
    }

    fn set(&mut self, field: &str) -> Result<(), SpecError> {
        let bad = || SpecError::Field(field.to_owned());
        let (key, value) = field.split_once('=').ok_or_else(bad)?;
        let flag = || match value {
            "0" => Ok(false),
            "1" => Ok(true),
            _ => Err(bad()),
        };
        match key {
            "free" => self.free_bytes = size_of_text(value)?,
            "sms" => self.sms = value.parse().map_err(|_| bad())?,
            "vmm" => self.vmm = flag()?,
            "smem" => self.smem_optin = size_of_text(value)?,
            "integrated" => self.integrated = flag()?,
            "uuid" => self.uuid = uuid_of_text(value).ok_or_else(bad)?,
            "pci" => self.pci = pci_of_text(value).ok_or_else(bad)?,
            "context" => self.context_bytes = size_of_text(value)?,
            "reserved" => self.reserved_bytes = size_of_text(value)?,
            "granularity" => self.granularity = size_of_text(value)?.max(1),
            "mig" => self.mig = Some(flag()?),
            "board" => self.board = Some(value.parse().map_err(|_| bad())?),
            _ => return Err(bad()),
        }
        Ok(())
    }
}

fn hex_groups(uuid: &[u8; 16]) -> String {
    let hex: String = uuid.iter().map(|byte| format!("{byte:02x}")).collect();
    let group = |from: usize, to: usize| hex.get(from..to).unwrap_or_default().to_owned();
    [
        group(0, 8),
        group(8, 12),
        group(12, 16),
        group(16, 20),
        group(20, 32),
    ]
    .join("-")
}

/// A number of bytes with or without a unit: `11441MiB`, `1.5GiB`, `4096`.
pub(crate) fn size_of_text(text: &str) -> Result<u64, SpecError> {
    const UNITS: [(&str, f64); 8] = [
        ("tib", 1_099_511_627_776.0),
        ("gib", 1_073_741_824.0),
        ("mib", 1_048_576.0),
        ("kib", 1024.0),
        ("gb", 1e9),
        ("mb", 1e6),
        ("b", 1.0),
        ("", 1.0),
    ];
    let bad = || SpecError::Size(text.to_owned());
    let text = text.trim();
    let at = text
        .find(|c: char| c.is_ascii_alphabetic())
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(at);
    let unit = unit.to_ascii_lowercase();
    let factor = UNITS
        .iter()
        .find(|(name, _)| *name == unit)
        .ok_or_else(bad)?
        .1;
    let value: f64 = number.trim().parse().map_err(|_| bad())?;
    if !(0.0..=9e18).contains(&(value * factor)) {
        return Err(bad());
    }
    Ok((value * factor) as u64)
}

/// 32 hex digits with or without dashes and `GPU-`.
fn uuid_of_text(text: &str) -> Option<[u8; 16]> {
    let text = text.strip_prefix("GPU-").unwrap_or(text);
    let digits: Vec<u8> = text
        .chars()
        .filter(|c| *c != '-')
        .map(|c| c.to_digit(16).map(|digit| digit as u8))
        .collect::<Option<_>>()?;
    let digits: [u8; 32] = digits.try_into().ok()?;
    let mut uuid = [0; 16];
    for (byte, pair) in uuid.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = pair.iter().fold(0, |sum, digit| sum << 4 | digit);
    }
    Some(uuid)
}

/// `[domain:]bus:device[.function]`, or a bus alone, in hex.
pub(crate) fn pci_of_text(text: &str) -> Option<PciAddress> {
    let hex = |text: &str| u32::from_str_radix(text, 16).ok();
    let text = text.split_once('.').map_or(text, |(address, _)| address);
    let parts: Vec<u32> = text.split(':').map(hex).collect::<Option<_>>()?;
    let address = |domain, bus, device| PciAddress {
        domain,
        bus,
        device,
    };
    match parts[..] {
        [bus] => Some(address(0, bus, 0)),
        [bus, device] => Some(address(0, bus, device)),
        [domain, bus, device] => Some(address(domain, bus, device)),
        _ => None,
    }
}

/// The fields of one device. A PCI address has the fields' own separator in it.
fn fields(text: &str) -> Vec<String> {
    let mut fields: Vec<String> = Vec::new();
    let mut parts = text.split(':').filter(|part| !part.is_empty()).peekable();
    while let Some(part) = parts.next() {
        let mut field = part.to_owned();
        if part.starts_with("pci=") {
            let hex = |part: &str| {
                part.split('.')
                    .all(|n| n.chars().all(|c| c.is_ascii_hexdigit()))
            };
            while let Some(more) = parts.next_if(|part| hex(part)) {
                field = format!("{field}:{more}");
            }
        }
        fields.push(field);
    }
    fields
}

/// The GPUs of a list such as `2*Tesla K80:11441MiB:3.7,RTX 3090:24GiB:8.6:free=20GiB`.
pub(crate) fn devices(list: &str) -> Result<Vec<Spec>, SpecError> {
    let mut devices = Vec::new();
    for text in list
        .split(',')
        .map(str::trim)
        .filter(|text| !text.is_empty())
    {
        let (count, text) = match text.split_once('*') {
            Some((count, rest)) if count.chars().all(|c| c.is_ascii_digit()) => {
                (count.parse::<usize>().unwrap_or(0), rest)
            }
            _ => (1, text),
        };
        let fields = fields(text);
        let [name, size, capability, settings @ ..] = &fields[..] else {
            return Err(SpecError::Device(text.to_owned()));
        };
        let mut spec = Spec::new(name, size, capability)?;
        for field in settings {
            spec.set(field)?;
        }
        devices.extend(std::iter::repeat_n(spec, count.min(MOST_DEVICES)));
    }
    devices.truncate(MOST_DEVICES);
    number(&mut devices);
    distinct(&devices)?;
    Ok(devices)
}

/// Addresses and UUIDs for those that have none: bus 1, 2, .. in the order of the list.
fn number(devices: &mut [Spec]) {
    let none = PciAddress {
        domain: 0,
        bus: 0,
        device: 0,
    };
    let mut taken: Vec<PciAddress> = devices.iter().map(|device| device.pci).collect();
    for (device, nth) in devices.iter_mut().zip(1u8..) {
        if device.pci == none {
            device.pci.bus = nth.into();
            while taken.contains(&device.pci) {
                device.pci.bus += MOST_DEVICES as u32;
            }
            taken.push(device.pci);
        }
        if device.uuid == [0; 16] {
            device.uuid = *b"vgpu\0\0\x40\0\x80\0\0\0\0\0\0\0";
            device.uuid[15] = nth;
        }
    }
}

fn distinct(devices: &[Spec]) -> Result<(), SpecError> {
    for (at, device) in devices.iter().enumerate() {
        for other in devices.iter().skip(at + 1) {
            if device.uuid == other.uuid {
                return Err(SpecError::Twice(format!("UUID {}", device.uuid_text())));
            }
            if device.pci == other.pci {
                return Err(SpecError::Twice(format!("PCI address {}", device.bus_id())));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_of_devices_with_every_key() {
        let list = "2*Tesla K80:11441MiB:3.7, A100:40GiB:8.0:free=38GiB:sms=98:vmm=0:smem=48KiB:integrated=1:\
                    uuid=GPU-01234567-89ab-cdef-0123-456789abcdef:pci=0000:3b:00.0:context=169MiB:\
                    reserved=1GiB:granularity=2MiB:mig=1:board=768";
        let devices = devices(list).expect("a valid list");
        assert_eq!(devices.len(), 3);
        let k80 = &devices[1];
        assert_eq!(
            (k80.name.as_str(), k80.total_bytes),
            ("Tesla K80", 11441 << 20)
        );
        assert_eq!((k80.major, k80.minor, k80.sms, k80.mig), (3, 7, 13, None));
        assert_eq!(k80.bus_id(), "0000:02:00.0");
        let a100 = &devices[2];
        assert_eq!((a100.free_bytes, a100.sms, a100.vmm), (38 << 30, 98, false));
        assert_eq!((a100.smem_optin, a100.integrated), (48 << 10, true));
        assert_eq!(a100.uuid_text(), "GPU-01234567-89ab-cdef-0123-456789abcdef");
        assert_eq!(a100.bus_id(), "0000:3B:00.0");
        assert_eq!(
            (a100.context_bytes, a100.reserved_bytes),
            (169 << 20, 1 << 30)
        );
        assert_eq!((a100.granularity, a100.mig), (2 << 20, Some(true)));
        assert_eq!((k80.board, a100.board), (None, Some(768)));
    }

    #[test]
    fn what_cannot_be_played_is_said() {
        for (list, words) in [
            ("Small", "bad device 'Small'"),
            ("T4:15GiB:x", "bad device 'T4'"),
            ("T4:15GiB:7.5:fast=1", "bad field 'fast=1'"),
            ("T4:15GiB:7.5:vmm=2", "bad field 'vmm=2'"),
            ("T4:15G:7.5", "bad size '15G'"),
            (
                "2*T4:15GiB:7.5:pci=0000:01:00.0",
                "two GPUs have the PCI address 0000:01:00.0",
            ),
        ] {
            let error = devices(list).expect_err(list).to_string();
            assert!(error.contains(words), "{list}: {error}");
        }
    }

    #[test]
    fn an_address_ends_where_the_next_key_begins() {
        let list = "T4:15GiB:7.5:pci=af:00.0:sms=7";
        let devices = devices(list).expect("a valid list");
        assert_eq!((devices[0].pci.bus, devices[0].sms), (0xaf, 7));
    }

    #[test]
    fn no_list_is_no_devices() {
        assert_eq!(devices(""), Ok(Vec::new()));
    }
}
