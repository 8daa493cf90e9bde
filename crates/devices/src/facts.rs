//! What is known of a device while its `--gpus` entry is read.

use vramfit_ggml::ComputeCapability;
use vramfit_ggml::cuda::PoolKind;
use vramfit_plan::{Allowance, Device};

use crate::catalogue::Card;
use crate::overhead::{driver_reserve, measured, overhead};

/// A device in the making: the options of an entry change it, [`device`](Facts::device) completes it.
#[derive(Clone)]
pub(crate) struct Facts {
    pub(crate) name: String,
    /// The card of the catalogue that it is, whatever it is called.
    pub(crate) card: Option<&'static str>,
    pub(crate) total_bytes: u64,
    /// `None` for all of it.
    pub(crate) free_bytes: Option<u64>,
    pub(crate) compute_capability: ComputeCapability,
    pub(crate) sm_count: Option<u32>,
    pub(crate) integrated: bool,
    pub(crate) pool: PoolKind,
    /// What is free still holds what the driver keeps: it is not CUDA's own figure.
    pub(crate) driver_keeps_some: bool,
}

impl Facts {
    pub(crate) fn of_card(card: &Card) -> Facts {
        Facts {
            name: card.name.to_owned(),
            card: Some(card.key),
            total_bytes: card.cuda_total_bytes.unwrap_or(card.total_bytes),
            free_bytes: None,
            compute_capability: card.compute_capability,
            sm_count: card.sm_count,
            integrated: card.integrated,
            // drivers have virtual memory management for all, the K80 included
            pool: PoolKind::Vmm,
            driver_keeps_some: card.cuda_total_bytes.is_none(),
        }
    }

    pub(crate) fn of_size(name: String, total_bytes: u64, capability: ComputeCapability) -> Facts {
        Facts {
            name,
            card: None,
            total_bytes,
            free_bytes: None,
            compute_capability: capability,
            sm_count: None,
            integrated: false,
            pool: PoolKind::Vmm,
            driver_keeps_some: true,
        }
    }

    pub(crate) fn device(&self) -> Device {
        let capability = self.compute_capability;
        let measured = self.card.and_then(|card| measured(card, capability));
        let cuda = measured.unwrap_or_else(|| overhead(capability, self.sm_count));
        let mut allowance = Allowance {
            bytes: cuda.bytes,
            low_bytes: cuda.low_bytes,
            kept_bytes: 0,
            per_buffer_bytes: 0,
            source: cuda.source.to_owned(),
        };
        if self.driver_keeps_some {
            let kept = driver_reserve(self.total_bytes, capability, self.integrated);
            if kept.bytes > 0 {
                allowance.bytes = allowance.bytes.saturating_add(kept.bytes);
                allowance.kept_bytes = kept.bytes;
                let (own, kept) = (cuda.source, kept.source);
                allowance.source = format!("{own}{}{kept}", Allowance::KEPT);
            }
        }
        Device {
            name: self.name.clone(),
            total_bytes: self.total_bytes,
            free_bytes: self.free_bytes.unwrap_or(self.total_bytes),
            compute_capability: self.compute_capability,
            sm_count: self.sm_count,
            integrated: self.integrated,
            pool: self.pool,
            overhead: allowance,
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::{Gpus, NoProbe};

    const MIB: u64 = 1 << 20;

    #[test]
    fn what_the_driver_keeps_is_counted_once() {
        let check = |text: &str, total_mib: u64, free_mib: u64, overhead_mib: u64| {
            let list = text.parse::<Gpus>().unwrap().resolve(&NoProbe).unwrap();
            let d = &list.devices[0];
            let seen = (
                d.total_bytes / MIB,
                d.free_bytes / MIB,
                d.overhead.bytes / MIB,
            );
            assert_eq!(seen, (total_mib, free_mib, overhead_mib), "{text}");
            let said = d.overhead.source.contains("the driver keeps");
            assert_eq!(said, overhead_mib > 512, "{text}: {}", d.overhead.source);
        };
        // CUDA's total is on record
        check("rtx3090", 24_123, 24_123, 342);
        // Kepler's driver counts it out by itself
        check("k80", 11_441, 11_441, 169);
        check("gb10", 124_610, 124_610, 240);
        // 96 + 3 x 30 and 1.5%
        check("rtx4090:total=48GiB", 49_152, 49_152, 1125);
        check("24GiB", 24_576, 24_576, 1034);
        // free memory is taken at its word
        check("24GiB:free=9GiB", 24_576, 9_216, 512);
        check("24GiB:free=50%", 24_576, 12_288, 1034);
    }

    #[test]
    fn what_was_measured_on_the_k80_is_told_as_measured_of_it_alone() {
        let source = |text: &str| {
            let list = text.parse::<Gpus>().unwrap().resolve(&NoProbe).unwrap();
            let overhead = list.devices[0].overhead.clone();
            assert_eq!(overhead.bytes, 169 * MIB, "{text}");
            (overhead.low_bytes / MIB, overhead.source)
        };
        for card in ["k80", "k80:name=left"] {
            let (low_mib, source) = source(card);
            assert_eq!(low_mib, 163);
            assert!(source.starts_with("K80, driver 470"), "{source}");
        }
        for unknown in ["12GiB:cc=3.7", "12GiB:cc=3.7:sms=15"] {
            let (low_mib, source) = source(unknown);
            assert_eq!(low_mib, 93);
            assert!(source.starts_with("no profile of this card"), "{source}");
        }
    }
}
