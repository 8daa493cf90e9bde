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
pub(crate) fn by_cuda(devices: &[Spec], order: Option<&str>, visible: Option<&str>) -> Vec<usize> {
    let all = match order {
        Some("PCI_BUS_ID") => by_bus(devices),
        _ => (0..devices.len()).collect(),
    };
    let Some(visible) = visible else {
        return all;
    };
    let mut shown: Vec<usize> = Vec::new();
    for entry in visible.split(',').map(str::trim) {
        // What follows an entry that names no GPU is not looked at.
        let Some(place) = place(devices, &all, entry) else {
            break;
        };
        if shown.contains(&place) {
            return Vec::new(); // a GPU twice: the driver shows none
        }
        shown.push(place);
    }
    shown
}

/// An index in CUDA's order, a UUID of a card or of its MIG instance, or the beginning of one that is nobody else's.
fn place(devices: &[Spec], all: &[usize], entry: &str) -> Option<usize> {
    if let Ok(index) = entry.parse::<i64>() {
        return all.get(usize::try_from(index).ok()?).copied();
    }
    if !entry.starts_with("GPU-") && !entry.starts_with("MIG-") {
        return None;
    }
    let entry = entry.to_ascii_lowercase();
    let meant = |place: &&usize| {
        devices.get(**place).is_some_and(|device| {
            [device.uuid_text(), device.mig_uuid_text()]
                .iter()
                .zip([true, device.mig_is_on()])
                .any(|(uuid, shown)| shown && uuid.to_ascii_lowercase().starts_with(&entry))
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
            (None, Some("1,-1,0"), vec![1]),
            (None, Some("NoDevFiles"), vec![]),
            (None, Some(" 2 , 1"), vec![2, 1]),
            (None, Some("1,1"), vec![]),
            (None, Some("GPU-cccc"), vec![2]),
            (None, Some("GPU-CCCCCCCC,0"), vec![2, 0]),
            (None, Some("GPU-aaaa"), vec![]),
            (None, Some("GPU-aaaab,GPU-aaaaa"), vec![1, 0]),
            (None, Some("MIG-33cccccc"), vec![2]),
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
