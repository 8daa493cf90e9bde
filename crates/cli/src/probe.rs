//! `--gpus auto`, `--probe-timeout`, `--probe-context`: how this machine's GPUs are asked for.

use std::time::Duration;

use vramfit::devices::DEFAULT_TIMEOUT;
use vramfit::{ChildProbe, GpuList, Gpus};

use crate::low::LowArgs;

/// No driver needs longer; a wrong number should not be waited for.
const LONGEST_SECONDS: f64 = 3600.0;

/// The GPUs of `--gpus`; without it, those of this machine.
pub fn gpus(low: &LowArgs) -> Result<GpuList, String> {
    let text = low.value("gpus").map_or("auto", |said| &said.text);
    let gpus = text.parse::<Gpus>().map_err(|e| format!("--gpus: {e}"))?;
    let probe = child(timeout(low)?, low.is_on("probe-context"))?;
    gpus.resolve(&probe).map_err(|error| error.to_string())
}

/// How long a driver may take.
pub fn timeout(low: &LowArgs) -> Result<Duration, String> {
    match low.value("probe-timeout") {
        Some(said) => read_timeout(&said.text),
        None => Ok(DEFAULT_TIMEOUT),
    }
}

/// A probe by another process of this program.
pub fn child(timeout: Duration, make_context: bool) -> Result<ChildProbe, String> {
    let probe = ChildProbe::this_program().map_err(|error| error.to_string())?;
    Ok(probe.timeout(timeout).make_context(make_context))
}

/// Seconds, with or without a point.
pub fn read_timeout(text: &str) -> Result<Duration, String> {
    let seconds = text.trim().parse::<f64>().ok();
    let seconds = seconds.filter(|s| *s > 0.0 && *s <= LONGEST_SECONDS);
    let time = seconds.and_then(|s| Duration::try_from_secs_f64(s).ok());
    time.ok_or_else(|| format!("--probe-timeout: '{text}' is not a number of seconds up to 3600"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_limits_are_seconds() {
        let check = |text: &str, ms: Option<u128>| {
            let read = read_timeout(text).ok();
            assert_eq!(read.map(|time| time.as_millis()), ms, "{text}");
        };
        check("5", Some(5000));
        check("0.25", Some(250));
        for bad in ["0", "-1", "", "soon", "NaN", "inf", "1e9"] {
            check(bad, None);
        }
    }
}
