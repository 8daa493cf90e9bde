//! Which GPUs CUDA shows, and in which order: `CUDA_VISIBLE_DEVICES` and `CUDA_DEVICE_ORDER`. NVML asks neither.

use crate::spec::Spec;

/// Places in the list, sorted by PCI address: NVML's order, and CUDA's with `CUDA_DEVICE_ORDER=PCI_BUS_ID`.
pub(crate) fn by_bus(devices: &[Spec]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..devices.len()).collect();
    order.sort_by_key(|place| devices.get(*place).map(|device| device.pci));
    order
}

/// Places in the list of the GPUs that CUDA shows; a GPU's number in CUDA is its place here. Without
/// `CUDA_DEVICE_ORDER` the driver guesses which is fastest: the list itself stands for what came of that.
///
/// The rules are those of NVIDIA's CUDA programming guide (environment variables) and, where it is silent, what PyTorch
/// has found of the driver (`test_cuda_nvml_based_avail.py`): indices are read as `strtoul` does, the first entry says
/// whether all are indices or UUIDs, and a GPU that is named twice hides all.
pub(crate) fn by_cuda(devices: &[Spec], order: Option<&str>, visible: Option<&str>) -> Vec<usize> {
    let all = match order {
        Some("PCI_BUS_ID") => by_bus(devices),
        _ => (0..devices.len()).collect(),
    };
    let Some(visible) = visible else {
        return all;
    };
    let kind = ["GPU-", "MIG-"]
        .into_iter()
        .find(|prefix| visible.trim_start().starts_with(prefix));
    let mut shown: Vec<usize> = Vec::new();
    for entry in visible.split(',').map(str::trim) {
        let place = match kind {
            Some(prefix) if entry.starts_with(prefix) => by_uuid(devices, &all, entry),
            Some(_) => None,
            None => index(entry).and_then(|index| all.get(index).copied()),
        };
        // What follows an entry that names no GPU is not looked at.
        let Some(place) = place else {
            break;
        };
        if shown.contains(&place) {
            return Vec::new();
        }
        shown.push(place);
    }
    shown
}

/// The number that an entry begins with.
fn index(entry: &str) -> Option<usize> {
    let (negative, digits) = match entry.strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, entry.strip_prefix('+').unwrap_or(entry)),
    };
    let end = digits
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(digits.len());
    let number: usize = digits.get(..end)?.parse().ok()?;
    (!negative || number == 0).then_some(number)
}

/// The GPU whose UUID, or whose MIG instance's, begins so; none where several do.
fn by_uuid(devices: &[Spec], all: &[usize], entry: &str) -> Option<usize> {
    let meant = |place: &&usize| {
        devices.get(**place).is_some_and(|device| {
            let names = [
                device.mig_uuid_text(),
                format!("MIG-{}/0/0", device.uuid_text()),
            ];
            device.uuid_text().starts_with(entry)
                || device.mig_is_on() && names.iter().any(|name| name.starts_with(entry))
        })
    };
    let mut found = all.iter().filter(meant);
    match (found.next(), found.next()) {
        (Some(place), None) => Some(*place),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec;

    #[test]
    fn indices_uuids_and_what_ends_the_list() {
        let list = "A:1GiB:8.0:pci=9:uuid=aaaaaaaa000000000000000000000001,\
                    B:1GiB:8.0:pci=3:uuid=aaaabbbb000000000000000000000002,\
                    C:1GiB:8.0:pci=5:uuid=cccccccc000000000000000000000003:mig=1";
        let devices = spec::devices(list).expect("a valid list");
        for (order, visible, want) in [
            (None, None, vec![0, 1, 2]),
            (Some("FASTEST_FIRST"), None, vec![0, 1, 2]),
            (Some("PCI_BUS_ID"), None, vec![1, 2, 0]),
            (Some("PCI_BUS_ID"), Some("2,0"), vec![0, 1]),
            (None, Some(""), vec![]),
            (None, Some("-1"), vec![]),
            (None, Some("1,7,0"), vec![1]),
            (None, Some("0,2,-1,1"), vec![0, 2]),
            (None, Some("NoDevFiles"), vec![]),
            (None, Some(" 2 , 1"), vec![2, 1]),
            (None, Some("2, +1, -0, 5"), vec![2, 1, 0]),
            (None, Some("1gpu2,2ampere"), vec![1, 2]),
            (None, Some("2,1,two,one"), vec![2, 1]),
            (None, Some("one,two,0"), vec![]),
            (None, Some("0,1,1"), vec![]),
            (None, Some("GPU-cccc"), vec![2]),
            (None, Some("GPU-cccc, 0"), vec![2]),
            (None, Some("0,GPU-cccc"), vec![0]),
            (None, Some("GPU-aaaa"), vec![]),
            (None, Some("GPU-cccc,GPU-aaaa,GPU-aaaab"), vec![2]),
            (None, Some("GPU-aaaab,GPU-aaaaa"), vec![1, 0]),
            (None, Some("GPU-123,GPU-cccc"), vec![]),
            (None, Some("GPU-cccc,GPU-aaaab,GPU-ccccc"), vec![]),
            (None, Some("MIG-33cccccc"), vec![2]),
            (
                None,
                Some("MIG-GPU-cccccccc-0000-0000-0000-000000000003/0/0"),
                vec![2],
            ),
            (None, Some("MIG-55"), vec![]),
            (None, Some("cccc"), vec![]),
        ] {
            assert_eq!(
                by_cuda(&devices, order, visible),
                want,
                "{order:?} {visible:?}"
            );
        }
        assert_eq!(by_bus(&devices), [1, 2, 0]);
    }
}
