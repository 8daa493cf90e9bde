//! Predicted and measured, side by side.

use serde::{Deserialize, Serialize};

use crate::engine::build_name;
use crate::reach::Reached;
use crate::{Card, EngineKind, Expected, ExpectedDevice, Measurement, SaidBuffers, Seen};

/// A total is right within this, or within a hundredth of what was measured.
pub const TOLERANCE_BYTES: u64 = 64 << 20;

/// One model's run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Comparison {
    /// `vramfit-calibration/1`.
    pub schema: String,
    /// The model's file.
    pub model: String,
    /// The build that was predicted.
    pub build: String,
    /// The build that ran, as it says itself.
    #[serde(default)]
    pub ran: String,
    /// Which program ran.
    pub engine: EngineKind,
    /// The driver's version.
    pub driver: String,
    /// Its flags, behind `-m MODEL`.
    pub flags: Vec<String>,
    /// Tokens of the prompt, of each sequence.
    pub prompt_tokens: u64,
    /// How long it took.
    pub seconds: u64,
    /// Every card.
    pub devices: Vec<DeviceComparison>,
}

/// One card.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceComparison {
    /// `CUDA0`.
    pub id: String,
    /// The card, as the driver calls it.
    pub card: String,
    /// What was predicted.
    pub predicted: ExpectedDevice,
    /// What NVML showed.
    pub measured: Option<Seen>,
    /// What the engine says of its buffers.
    pub said: Option<SaidBuffers>,
    /// Of what is predicted, what this run does not call for: temporary buffers of a projector that is shown no picture,
    /// or of an engine that only loads.
    pub idle_bytes: u64,
    /// By how much the pool of this run may be smaller than the predicted one, which is that of the largest batch that may
    /// ever run.
    #[serde(default)]
    pub pool_short_bytes: u64,
    /// Why nothing is known of this run's largest batch, where that is so: then nothing is learned.
    #[serde(default)]
    pub unknown_batches: Option<String>,
    /// Predicted and said are the same; none where the engine does not say.
    pub buffers_agree: Option<bool>,
    /// Measured, less buffers and what computing took: what CUDA itself took.
    pub residual_bytes: Option<i64>,
    /// The total as predicted for this run (with the upper end of CUDA's own) less what was measured.
    pub error_bytes: Option<i64>,
    /// How far the measured total lies outside of the predicted interval, bytes: 0 inside.
    pub outside_bytes: Option<u64>,
    /// `outside_bytes` is within [`TOLERANCE_BYTES`], or within a hundredth of what was measured.
    pub within_tolerance: Option<bool>,
}

impl Comparison {
    /// Holds `measurement` against `expected`.
    pub fn new(
        expected: &Expected,
        measurement: &Measurement,
        cards: &[Card],
        driver: &str,
    ) -> Comparison {
        let reached = Reached::new(expected, measurement);
        let device = |(i, predicted): (usize, &ExpectedDevice)| {
            let measured = measurement.seen.get(i).copied().flatten();
            let said = measurement.said.get(i).copied().flatten();
            let card = cards.get(i).map_or(&predicted.name, |card| &card.name);
            // Nobody sends a picture; and an engine that only loads computes nothing.
            let idle_bytes = match measurement.prompt_tokens {
                0 => predicted.runtime_bytes(),
                _ => predicted.projector.runtime_bytes,
            };
            DeviceComparison::new(
                format!("CUDA{i}"),
                card,
                predicted,
                idle_bytes,
                &reached,
                measured,
                said,
            )
        };
        Comparison {
            schema: "vramfit-calibration/1".to_string(),
            model: expected.model.clone(),
            build: expected.build.clone(),
            ran: build_name(measurement.version.as_deref()),
            engine: measurement.engine,
            driver: driver.to_string(),
            flags: expected.flags.clone(),
            prompt_tokens: measurement.prompt_tokens,
            seconds: measurement.seconds,
            devices: expected.devices.iter().enumerate().map(device).collect(),
        }
    }

    /// Whether every card that was to be used was, within tolerance, and nothing disagreed.
    pub fn is_right(&self) -> bool {
        self.devices.iter().all(|d| match d.predicted.is_used {
            true => d.within_tolerance == Some(true) && d.buffers_agree != Some(false),
            false => true,
        })
    }
}

impl DeviceComparison {
    /// Less was measured than there can be, by more than [`TOLERANCE_BYTES`]; or it is not known what was.
    pub(crate) fn is_too_little(&self) -> bool {
        let is_below = self.error_bytes.is_none_or(|error| error > 0);
        is_below
            && self
                .outside_bytes
                .is_none_or(|bytes| bytes > TOLERANCE_BYTES)
    }

    fn new(
        id: String,
        card: &str,
        predicted: &ExpectedDevice,
        idle_bytes: u64,
        reached: &Result<Reached, String>,
        measured: Option<Seen>,
        said: Option<SaidBuffers>,
    ) -> DeviceComparison {
        let less = |a: u64, b: u64| {
            let difference = i128::from(a) - i128::from(b);
            i64::try_from(difference).unwrap_or(if a > b { i64::MAX } else { i64::MIN })
        };
        let measured_if_used = measured.filter(|_| predicted.is_used);
        let own = predicted.engine_bytes().saturating_sub(idle_bytes);
        let residual = measured_if_used.map(|m| less(m.peak_bytes, own));
        // What is not computed takes nothing, and how much was computed may not be known.
        let pool = predicted
            .pool_bytes
            .saturating_add(predicted.draft.runtime_bytes);
        let computes = pool.min(predicted.runtime_bytes().saturating_sub(idle_bytes));
        let of_smaller = predicted
            .pool_bytes
            .saturating_sub(predicted.pool_own_bytes);
        let short = match reached {
            Ok(reached) => {
                let largest = computes.saturating_sub(of_smaller);
                reached.short_of(largest).saturating_add(of_smaller)
            }
            Err(_) => computes,
        }
        .min(computes);
        let low = own
            .saturating_sub(short)
            .saturating_add(predicted.overhead_low_bytes);
        let high = own.saturating_add(predicted.overhead_bytes);
        let error = measured_if_used.map(|m| less(high, m.peak_bytes));
        let outside = measured_if_used.map(|m| {
            let below = low.saturating_sub(m.peak_bytes);
            below.max(m.peak_bytes.saturating_sub(high))
        });
        let within = measured_if_used
            .zip(outside)
            .map(|(m, outside)| outside <= TOLERANCE_BYTES.max(m.peak_bytes / 100));
        DeviceComparison {
            id,
            card: card.to_string(),
            predicted: predicted.clone(),
            measured,
            said,
            idle_bytes,
            pool_short_bytes: short,
            unknown_batches: reached.as_ref().err().cloned(),
            buffers_agree: said
                .filter(|_| predicted.is_used)
                .map(|s| s.agrees(predicted.named())),
            residual_bytes: residual,
            error_bytes: error,
            outside_bytes: outside,
            within_tolerance: within,
        }
    }
}
