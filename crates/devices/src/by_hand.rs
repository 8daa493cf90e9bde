//! GPUs that a program describes itself, as it has them from its driver.

use crate::bytes::format_bytes;
use crate::facts::Facts;
use crate::list::{GpuEntry, GpuList};
use crate::lookup::find_card;
use vramfit_ggml::ComputeCapability;

/// Why a GPU cannot be as described.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum GpuError {
    /// No memory at all.
    #[error(
        "a GPU has no memory: its total is 0 bytes; leave the GPU out, or ask the driver again"
    )]
    NoMemory,
    /// More free than there is.
    #[error("{free_bytes} bytes are free of {total_bytes}; free memory is part of the total")]
    FreeAboveTotal {
        /// Free, as given.
        free_bytes: u64,
        /// In all, as given.
        total_bytes: u64,
    },
}

impl GpuList {
    /// Adds a GPU by what CUDA says of it (`cudaMemGetInfo`, compute capability). A card of the catalogue is known by
    /// its name; for any other what CUDA itself takes is modelled by the compute capability.
    pub fn add(
        &mut self,
        name: &str,
        total_bytes: u64,
        free_bytes: u64,
        compute_capability: ComputeCapability,
    ) -> Result<(), GpuError> {
        if total_bytes == 0 {
            return Err(GpuError::NoMemory);
        }
        if free_bytes > total_bytes {
            return Err(GpuError::FreeAboveTotal {
                free_bytes,
                total_bytes,
            });
        }
        let card = find_card(name).ok().map(|found| found.card);
        let card = card.filter(|card| card.compute_capability == compute_capability);
        let name = match name.trim() {
            "" => format!("GPU {}", format_bytes(total_bytes)),
            name => name.to_owned(),
        };
        let at = self.devices.len();
        self.entries.push(GpuEntry {
            text: name.clone(),
            devices: at..at.saturating_add(1),
            card,
            boards: Vec::new(),
        });
        let known = match card {
            Some(card) => Facts::of_card(card),
            None => Facts::of_size(name.clone(), total_bytes, compute_capability),
        };
        let facts = Facts {
            name,
            total_bytes,
            free_bytes: Some(free_bytes),
            // CUDA's own figures: what the driver keeps is in neither.
            driver_keeps_some: false,
            ..known
        };
        self.devices.push(facts.device());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Gpus, NoProbe};

    #[test]
    fn a_card_is_known_by_its_name() {
        let mut list = GpuList::default();
        let mib = |n: u64| n << 20;
        let k80 = ComputeCapability::new(3, 7);
        list.add("Tesla K80", mib(11_441), mib(11_000), k80)
            .unwrap();
        let text: Gpus = "k80:free=11000MiB".parse().unwrap();
        let named = text.resolve(&NoProbe).unwrap();
        assert_eq!(list.devices, named.devices);
        assert!(list.entries[0].card.is_some());

        // A name with another compute capability is another card.
        let other = ComputeCapability::new(8, 6);
        list.add("Tesla K80", mib(11_441), mib(11_441), other)
            .unwrap();
        assert_eq!(list.devices[1].sm_count, None);
        assert_eq!(list.entries[1].devices, 1..2);

        list.add(" ", mib(1024), 0, other).unwrap();
        assert_eq!(list.devices[2].name, "GPU 1 GiB");
        assert_eq!(list.add("", 0, 0, other), Err(GpuError::NoMemory));
        let above = list.add("", 1, 2, other).unwrap_err();
        assert_eq!(
            above.to_string(),
            "2 bytes are free of 1; free memory is part of the total"
        );
        assert_eq!(list.devices.len(), 3);
    }
}
