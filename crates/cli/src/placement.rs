//! The flags that say what goes where.

use vramfit::{Override, OverrideTarget, Pinned, SplitMode};

use crate::low::{LowArgs, Said};
use crate::settings::{number, text_of};

/// `-ngl all`: above the layers of any model.
pub const ALL_LAYERS: u32 = 9999;

/// What the user has decided, on a machine of `n_gpus`.
pub fn pinned(low: &LowArgs, n_gpus: usize) -> Result<Pinned, String> {
    let devices = low.value("device").map(|said| devices(said, n_gpus));
    let devices = devices.transpose()?;
    let used = devices.as_ref().map_or(n_gpus, Vec::len);
    let mut overrides = Vec::new();
    for said in low.all("override-tensor") {
        for text in said.text.split(',') {
            overrides.push(tensor_override(said, text, n_gpus)?);
        }
    }
    let n_cpu_moe = low.value("n-cpu-moe");
    let main_gpu = low.value("main-gpu");
    let split_mode = split_mode(low)?;
    Ok(Pinned {
        n_gpu_layers: low.value("n-gpu-layers").map_or(Ok(None), gpu_layers)?,
        tensor_split: low.value("tensor-split").map(shares).transpose()?,
        split_mode,
        main_gpu: main_gpu
            .map(|said| main_of(said, split_mode, used))
            .transpose()?,
        devices,
        overrides,
        cpu_moe: low.is_on("cpu-moe"),
        n_cpu_moe: n_cpu_moe
            .map(|said| number(said, "a number of layers"))
            .transpose()?,
        experts_behind: low.overrides_before_experts,
    })
}

/// `-mg`: with `-sm none` llama.cpp takes no index beyond the GPUs in use.
fn main_of(said: &Said, mode: Option<SplitMode>, used: usize) -> Result<usize, String> {
    let main: usize = number(said, "the index of a GPU")?;
    if mode == Some(SplitMode::None) && main >= used && used > 0 {
        return Err(format!(
            "{}: {main} is not below {used}, the number of GPUs in use",
            said.by
        ));
    }
    Ok(main)
}

pub fn gpu_layers(said: &Said) -> Result<Option<u32>, String> {
    match said.text.as_str() {
        "auto" => return Ok(None),
        "all" => return Ok(Some(ALL_LAYERS)),
        _ => {}
    }
    let n: i64 = number(said, "a number of layers, all or auto")?;
    Ok(match n {
        -1 => None,
        ..-1 => Some(ALL_LAYERS),
        n => Some(u32::try_from(n).map_or(ALL_LAYERS, |n| n.min(ALL_LAYERS))),
    })
}

fn shares(said: &Said) -> Result<Vec<f32>, String> {
    let parts = said.text.split([',', '/']).filter(|part| !part.is_empty());
    let share = |part: &str| {
        let share: f32 = part.trim().parse().ok()?;
        (share.is_finite() && share >= 0.0).then_some(share)
    };
    let shares: Option<Vec<f32>> = parts.map(share).collect();
    shares.filter(|shares| !shares.is_empty()).ok_or_else(|| {
        let (by, text) = (said.by, &said.text);
        format!("{by}: '{text}' is not a list of shares such as 3,1")
    })
}

fn split_mode(low: &LowArgs) -> Result<Option<SplitMode>, String> {
    let by = low.value("split-mode").map_or("", |said| said.by);
    match text_of(low, "split-mode", &["none", "layer", "row", "tensor"])? {
        Some("none") => Ok(Some(SplitMode::None)),
        Some("layer") => Ok(Some(SplitMode::Layer)),
        Some("row") => Err(format!(
            "{by} row: this build of llama.cpp does not support split buffers; use layer, tensor or none"
        )),
        Some(_) => Ok(Some(SplitMode::Tensor)),
        None => Ok(None),
    }
}

/// `CUDA0` among `n_gpus`.
fn gpu(name: &str, n_gpus: usize) -> Option<usize> {
    let digits = name.strip_prefix("CUDA")?;
    let index: usize = digits.parse().ok()?;
    (index < n_gpus && index.to_string() == digits).then_some(index)
}

fn names(n_gpus: usize) -> String {
    match n_gpus {
        0 => "there is none".to_string(),
        1 => "there is CUDA0".to_string(),
        n => format!("there are CUDA0 to CUDA{}", n - 1),
    }
}

pub fn devices(said: &Said, n_gpus: usize) -> Result<Vec<usize>, String> {
    if said.text == "none" {
        return Ok(Vec::new());
    }
    let mut devices = Vec::new();
    for name in said.text.split(',') {
        let Some(index) = gpu(name.trim(), n_gpus) else {
            let there = names(n_gpus);
            return Err(format!(
                "{}: '{name}' is no GPU of --gpus: {there}",
                said.by
            ));
        };
        if devices.contains(&index) {
            return Err(format!("{}: {name} is named twice", said.by));
        }
        devices.push(index);
    }
    Ok(devices)
}

pub fn tensor_override(said: &Said, text: &str, n_gpus: usize) -> Result<Override, String> {
    let by = said.by;
    let Some((pattern, buffer)) = text.split_once('=') else {
        return Err(format!(
            "{by}: '{text}' is not PATTERN=BUFFER, such as ffn_.*_exps=CPU"
        ));
    };
    let target = match (buffer, gpu(buffer, n_gpus)) {
        ("CPU", _) => OverrideTarget::Host,
        (_, Some(index)) => OverrideTarget::Device(index),
        _ => {
            let there = names(n_gpus);
            return Err(format!(
                "{by}: '{buffer}' is neither CPU nor a GPU of --gpus: {there}"
            ));
        }
    };
    let pattern = regex::Regex::new(pattern).map_err(|error| {
        // The last line has the reason; those before it point at the place.
        let reason = error.to_string();
        let reason = reason.lines().last().unwrap_or_default();
        let reason = reason.trim_start_matches("error: ").to_string();
        format!("{by}: '{pattern}' is not a regular expression: {reason}")
    })?;
    Ok(Override { pattern, target })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(text: &str) -> Said {
        Said {
            text: text.to_string(),
            by: "-x",
        }
    }

    #[test]
    fn layers_are_counted_as_llama_cpp_does() {
        let check = |text: &str, expected: Option<u32>| {
            assert_eq!(gpu_layers(&said(text)), Ok(expected), "{text}");
        };
        check("auto", None);
        check("-1", None);
        check("all", Some(ALL_LAYERS));
        check("-2", Some(ALL_LAYERS));
        check("0", Some(0));
        check("99", Some(99));
        assert!(gpu_layers(&said("many")).is_err());
    }

    #[test]
    fn devices_and_shares_are_checked() {
        assert_eq!(devices(&said("CUDA1,CUDA0"), 2), Ok(vec![1, 0]));
        assert_eq!(devices(&said("none"), 2), Ok(vec![]));
        for bad in ["CUDA2", "CUDA0,CUDA0", "", "cuda0", "CUDA00", "Vulkan0"] {
            assert!(devices(&said(bad), 2).is_err(), "{bad}");
        }
        assert_eq!(shares(&said("3,1")), Ok(vec![3.0, 1.0]));
        assert_eq!(shares(&said("1/0.5")), Ok(vec![1.0, 0.5]));
        for bad in ["", "a", "-1,2", "inf", "NaN"] {
            assert!(shares(&said(bad)).is_err(), "{bad}");
        }
    }

    #[test]
    fn overrides_name_a_pattern_and_a_buffer() {
        let read = |text: &str| tensor_override(&said(text), text, 1).map(|o| o.target);
        assert_eq!(read("exps=CPU"), Ok(OverrideTarget::Host));
        assert_eq!(read("exps=CUDA0"), Ok(OverrideTarget::Device(0)));
        assert!(read("exps").unwrap_err().contains("PATTERN=BUFFER"));
        assert!(read("exps=CUDA1").unwrap_err().contains("there is CUDA0"));
        let unclosed = read("(exps=CPU").unwrap_err();
        assert!(
            unclosed.contains("unclosed group") && !unclosed.contains('\n'),
            "{unclosed}"
        );
    }
}
