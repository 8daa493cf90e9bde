//! What CUDA took on cards that were calibrated: context, modules and cuBLAS, beside llama.cpp's buffers and its
//! runtime pool. `estimate calibrate` learns it; it goes before the shipped figures of [`overhead`](crate::overhead).
//!
//! A profile belongs to a card, a driver and an engine build. Where one of the last two is another, what was measured
//! still says more than a default, so it is taken with [`MARGIN_BYTES`] on top, and the source says so.
//!
//! What a process takes of a card is not the sum of its allocations: the driver rounds each up to [`ROUNDING_BYTES`], or to
//! less where it puts small ones together. So a measurement leaves an interval, from all rounded up to none, and a plan for
//! another model adds as much for each of its own buffers.

mod file;
mod whole;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use vramfit_plan::{Allowance, Device};

use crate::format_bytes;
use crate::overhead::CUBLAS_BYTES;
use crate::probe::UNNAMED_GPU;

pub use file::{PROFILES_VARIABLE, ProfilesError, profiles_path};
pub use whole::{folder_of, write_whole};

/// Added to what was measured with another driver or another engine build, or where the driver is not known. A guess: a driver's update has moved
/// published contexts by some tens of MiB.
pub const MARGIN_BYTES: u64 = 64 << 20;

/// What CUDA's drivers give memory in: pages of 2 MiB, since Pascal; older cards have smaller ones.
/// `cuMemGetAllocationGranularity` says the same.
pub const ROUNDING_BYTES: u64 = 2 << 20;

/// What was left over of measurements on one card, driver and build that lies further apart is not one quantity:
/// something else is in some of it.
pub const CONSISTENT_WITHIN_BYTES: u64 = 64 << 20;

/// What CUDA itself was seen to take on a kind of card.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Profile {
    /// The card, as the driver calls it.
    pub card: String,
    /// The driver, as `550.54.14`.
    pub driver: String,
    /// The engine's build.
    pub build: String,
    /// cuBLAS was used, and what it takes beside its workspace is in the figures. Products of quantised weights do without,
    /// if flash attention is on.
    #[serde(default)]
    pub with_cublas: bool,
    /// The least that was seen, bytes: less all that the driver may have rounded buffers up by.
    pub low_bytes: u64,
    /// The most that was seen, bytes: as if it had rounded none.
    pub high_bytes: u64,
    /// Figures behind it, one a GPU and run.
    pub runs: u32,
}

/// All that is known, and how to find it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Profiles {
    entries: Vec<Profile>,
    /// Where in `entries` a card, driver and build is.
    places: BTreeMap<Key, usize>,
}

/// A measurement that does not go with those before it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{} to {} MiB were seen now, {} to {} MiB before ({} measured, driver {}, {}), which is not one quantity; calibrate again \
     with nothing else on the card, into another file (--profile FILE) if it is what was learned before that is wrong",
    seen.low_bytes >> 20, seen.high_bytes >> 20, known.low_bytes >> 20, known.high_bytes >> 20, known.runs, known.driver,
    known.build
)]
pub struct Inconsistent {
    /// What was seen now.
    pub seen: Profile,
    /// What was learned before, and stays.
    pub known: Profile,
}

/// For which driver and build a device is asked about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Host<'a> {
    /// The driver's version, where it is known.
    pub driver: Option<&'a str>,
    /// The engine's build.
    pub build: &'a str,
}

/// How well a profile answers.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Match {
    Other,
    DriverUnknown,
    Exact,
}

impl Profiles {
    /// The profiles, in the order of the file.
    pub fn entries(&self) -> &[Profile] {
        &self.entries
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// What is known of the card, driver and build of `seen`.
    pub fn known_as(&self, seen: &Profile) -> Option<&Profile> {
        let place = self.places.get(&key(seen))?;
        self.entries.get(*place)
    }

    /// Adds one more measurement: the interval of its card, driver and build grows as far as it has to. Where that makes it
    /// wider than [`CONSISTENT_WITHIN_BYTES`] something else is in one of them, and only upwards it grows: a plan is
    /// rather for too much than for too little.
    pub fn learn(&mut self, seen: Profile) -> Result<(), Box<Inconsistent>> {
        let place = *self.places.entry(key(&seen)).or_insert(self.entries.len());
        let Some(known) = self.entries.get_mut(place) else {
            self.entries.push(seen);
            return Ok(());
        };
        let low_bytes = known.low_bytes.min(seen.low_bytes);
        let high_bytes = known.high_bytes.max(seen.high_bytes);
        let is_one = high_bytes.saturating_sub(low_bytes) <= CONSISTENT_WITHIN_BYTES;
        if !is_one && seen.high_bytes <= known.high_bytes {
            let known = known.clone();
            return Err(Box::new(Inconsistent { seen, known }));
        }
        if is_one {
            known.low_bytes = low_bytes;
        }
        known.high_bytes = high_bytes;
        known.runs = known.runs.saturating_add(seen.runs);
        Ok(())
    }

    /// Those of a file; an error is the first that has the card, driver and build of one before it.
    fn new(entries: Vec<Profile>) -> Result<Profiles, Box<Profile>> {
        let mut places = BTreeMap::new();
        for (place, profile) in entries.iter().enumerate() {
            if places.insert(key(profile), place).is_some() {
                return Err(Box::new(profile.clone()));
            }
        }
        Ok(Profiles { entries, places })
    }

    /// What CUDA takes on `card`, if it was ever measured: the profiles that match best, together.
    pub fn allowance(&self, card: &str, host: &Host) -> Option<Allowance> {
        if card == UNNAMED_GPU {
            return None;
        }
        let card = normal(card);
        let of_card = self.entries.iter().filter(|p| normal(&p.card) == card);
        let matched: Vec<(Match, &Profile)> = of_card.map(|p| (how_well(p, host), p)).collect();
        let best = matched.iter().map(|(how, _)| *how).max()?;
        let best = matched.iter().filter(|(how, _)| *how == best);
        let same: Vec<&Profile> = best.map(|(_, p)| *p).collect();
        let first = same.first()?;
        let low_bytes = same.iter().map(|p| p.low_bytes).min()?;
        let high_bytes = same.iter().map(|p| p.high_bytes).max()?;
        let runs = same.iter().fold(0u32, |n, p| n.saturating_add(p.runs));
        let times = if runs == 1 { "time" } else { "times" };
        let measured = format!(
            "calibrated, measured {runs} {times} with driver {}, {}; {} on top for each buffer, which the driver rounds up",
            first.driver,
            first.build,
            format_bytes(ROUNDING_BYTES)
        );
        let mut source = measured;
        let mut more = |bytes: u64, why: &str| {
            source += &format!("; {} on top, {why}", format_bytes(bytes));
            bytes
        };
        let of_host = match how_well(first, host) {
            Match::Exact => 0,
            Match::DriverUnknown => more(MARGIN_BYTES, "as this driver is not known"),
            Match::Other => more(MARGIN_BYTES, "for another driver or engine build"),
        };
        let of_cublas = match same.iter().any(|p| p.with_cublas) {
            true => 0,
            false => more(CUBLAS_BYTES, "for cuBLAS, which nothing measured has used"),
        };
        Some(Allowance {
            bytes: high_bytes.saturating_add(of_host).saturating_add(of_cublas),
            low_bytes,
            kept_bytes: 0,
            per_buffer_bytes: ROUNDING_BYTES,
            source,
        })
    }

    /// Puts what was measured in place of shipped figures and defaults. Returns how many devices that changed.
    pub fn apply(&self, devices: &mut [Device], host: &Host) -> usize {
        let mut changed = 0;
        for device in devices {
            let Some(measured) = self.allowance(&device.name, host) else {
                continue;
            };
            let kept_bytes = device.overhead.kept_bytes;
            let mut source = measured.source;
            if let Some((_, kept)) = device.overhead.source.split_once("; and what the driver") {
                source += "; and what the driver";
                source += kept;
            }
            device.overhead = Allowance {
                bytes: measured.bytes.saturating_add(kept_bytes),
                low_bytes: measured.low_bytes,
                kept_bytes,
                per_buffer_bytes: measured.per_buffer_bytes,
                source,
            };
            changed += 1;
        }
        changed
    }
}

/// Card, driver and build, and whether cuBLAS is in it: no two profiles have the same.
type Key = (bool, [String; 3]);

fn key(profile: &Profile) -> Key {
    let card = normal(&profile.card);
    let key = [card, profile.driver.clone(), profile.build.clone()];
    (profile.with_cublas, key)
}

fn how_well(profile: &Profile, host: &Host) -> Match {
    match (profile.build == host.build, host.driver) {
        (true, Some(driver)) if driver == profile.driver => Match::Exact,
        (true, None) => Match::DriverUnknown,
        _ => Match::Other,
    }
}

/// A card's name without what differs between the driver and the catalogue.
fn normal(card: &str) -> String {
    let lower = card.to_lowercase();
    let words: Vec<&str> = lower
        .split_whitespace()
        .filter(|w| *w != "nvidia")
        .collect();
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Gpus, NoProbe};

    const MIB: u64 = 1 << 20;

    fn seen(driver: &str, build: &str, [low, high]: [u64; 2]) -> Profile {
        Profile {
            card: "NVIDIA GeForce RTX 3090".to_owned(),
            driver: driver.to_owned(),
            build: build.to_owned(),
            with_cublas: true,
            low_bytes: low * MIB,
            high_bytes: high * MIB,
            runs: 1,
        }
    }

    fn host<'a>(driver: Option<&'a str>, build: &'a str) -> Host<'a> {
        Host { driver, build }
    }

    #[test]
    fn the_nearest_profile_answers() {
        let mut profiles = Profiles::default();
        for (driver, build, interval) in [
            ("550.54", "b1", [300, 310]),
            ("550.54", "b1", [296, 304]),
            ("570.10", "b1", [320, 330]),
            ("570.10", "b2", [400, 410]),
        ] {
            profiles.learn(seen(driver, build, interval)).unwrap();
        }
        assert_eq!(profiles.entries().len(), 3);
        let check = |driver, build, low: u64, high: u64, words: &str| {
            let found = profiles.allowance("GeForce RTX 3090", &host(driver, build));
            let found = found.unwrap();
            let mib = (found.low_bytes / MIB, found.bytes / MIB);
            assert_eq!(mib, (low, high), "{driver:?} {build}: {}", found.source);
            assert!(found.source.contains(words), "{}", found.source);
        };
        check(
            Some("550.54"),
            "b1",
            296,
            310,
            "measured 2 times with driver 550.54, b1",
        );
        check(Some("570.10"), "b2", 400, 410, "measured 1 time");
        check(None, "b1", 296, 394, "this driver is not known");
        // another driver: all of them, and the margin
        check(Some("580.1"), "b1", 296, 474, "64 MiB on top");
        check(Some("550.54"), "b3", 296, 474, "64 MiB on top");
        let none = profiles.allowance("GeForce RTX 3080", &host(None, "b1"));
        assert_eq!(none, None);
    }

    #[test]
    fn what_does_not_go_with_the_rest_only_raises() {
        let mut profiles = Profiles::default();
        profiles.learn(seen("550.54", "b1", [300, 310])).unwrap();
        // as far apart as one quantity may be, then a MiB more at either end
        profiles.learn(seen("550.54", "b1", [262, 326])).unwrap();
        let before = profiles.clone();
        for far in [[261, 270], [200, 326]] {
            let refused = profiles.learn(seen("550.54", "b1", far)).unwrap_err();
            assert_eq!(refused.known, before.entries()[0]);
            let words = "262 to 326 MiB before (2 measured, driver 550.54, b1)";
            assert!(refused.to_string().contains(words), "{refused}");
            assert_eq!(profiles, before);
        }
        for high in [327, 410] {
            let far = seen("550.54", "b1", [high - 10, high]);
            profiles.learn(far).unwrap();
            let known = &profiles.entries()[0];
            assert_eq!([known.low_bytes, known.high_bytes], [262 * MIB, high * MIB]);
        }
        // of another driver
        profiles.learn(seen("570.10", "b1", [400, 410])).unwrap();
        assert_eq!(profiles.entries().len(), 2);
    }

    #[test]
    fn what_was_measured_without_cublas_leaves_room_for_it() {
        let mut profiles = Profiles::default();
        let without = Profile {
            with_cublas: false,
            ..seen("550.54", "b1", [250, 260])
        };
        profiles.learn(without).unwrap();
        let found = |profiles: &Profiles| {
            let host = host(Some("550.54"), "b1");
            let found = profiles
                .allowance("NVIDIA GeForce RTX 3090", &host)
                .unwrap();
            (
                [found.low_bytes, found.bytes].map(|bytes| bytes / MIB),
                found.source,
            )
        };
        let (interval, source) = found(&profiles);
        assert_eq!(interval, [250, 260 + 76]);
        assert!(source.contains("76 MiB on top, for cuBLAS"), "{source}");
        profiles.learn(seen("550.54", "b1", [300, 310])).unwrap();
        let (interval, source) = found(&profiles);
        assert_eq!(interval, [250, 310]);
        assert!(!source.contains("cuBLAS"), "{source}");
    }

    #[test]
    fn a_card_without_a_name_has_no_profile() {
        let mut profiles = Profiles::default();
        let unnamed = Profile {
            card: UNNAMED_GPU.to_owned(),
            ..seen("550.54", "b1", [300, 310])
        };
        profiles.learn(unnamed).unwrap();
        assert_eq!(
            profiles.allowance(UNNAMED_GPU, &host(Some("550.54"), "b1")),
            None
        );
    }

    #[test]
    fn what_the_driver_keeps_stays() {
        let mut profiles = Profiles::default();
        profiles.learn(seen("550.54", "b1", [300, 310])).unwrap();
        let list = "rtx3090:total=48GiB,rtx3090,k80".parse::<Gpus>().unwrap();
        let mut devices = list.resolve(&NoProbe).unwrap().devices;
        let before = devices.clone();
        let kept = before[0].overhead.kept_bytes;
        assert!(kept > 400 * MIB);
        for _ in 0..2 {
            let changed = profiles.apply(&mut devices, &host(Some("550.54"), "b1"));
            assert_eq!(changed, 2);
            assert_eq!(devices[0].overhead.bytes, 310 * MIB + kept);
            assert!(devices[0].overhead.source.contains("the driver keeps"));
            assert_eq!(devices[1].overhead.bytes, 310 * MIB);
            assert_eq!(devices[2], before[2]);
        }
    }
}
