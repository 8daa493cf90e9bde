//! `-md` and `--spec-type`: speculative decoding with a draft beside each model.

use std::path::PathBuf;

use vramfit::DraftFile;
use vramfit::settings::{CacheType, GpuId, GpuLayers};

use crate::low::LowArgs;
use crate::placement;
use crate::settings::{number, text_of};

/// From the flags. The error is one line.
pub fn draft_file(low: &LowArgs, n_gpus: usize) -> Result<Option<DraftFile>, String> {
    let kind = low.all("spec-type").iter().map(|said| said.text.as_str());
    let kind: Vec<&str> = kind.collect();
    let path = low.value("spec-draft-model");
    if path.is_none() && kind.is_empty() {
        return Ok(None);
    }
    let mut file = DraftFile::default();
    file.path = path.map(|said| PathBuf::from(&said.text));
    file.kind = (!kind.is_empty()).then(|| kind.join(","));
    for (id, slot) in [
        ("spec-draft-n-max", &mut file.n_max),
        ("spec-draft-n-cpu-moe", &mut file.n_cpu_moe),
    ] {
        let said = low.value(id);
        *slot = said
            .map(|said| number(said, "a whole number from 0 up"))
            .transpose()?;
    }
    if let Some(said) = low.value("spec-draft-ngl") {
        file.n_gpu_layers = Some(match placement::gpu_layers(said)? {
            None => GpuLayers::Auto,
            Some(placement::ALL_LAYERS) => GpuLayers::All,
            Some(n) => GpuLayers::Layers(n),
        });
    }
    if let Some(said) = low.value("spec-draft-device") {
        let devices = placement::devices(said, n_gpus)?;
        file.devices = Some(devices.into_iter().map(GpuId).collect());
    }
    for (id, slot) in [
        ("spec-draft-type-k", &mut file.type_k),
        ("spec-draft-type-v", &mut file.type_v),
    ] {
        let names = vramfit::estimate::CACHE_TYPES.map(vramfit::Type::name);
        let name = text_of(low, id, &names)?;
        *slot = name
            .and_then(vramfit::Type::from_name)
            .and_then(CacheType::new);
    }
    for said in low.all("spec-draft-override-tensor") {
        for text in said.text.split(',') {
            let given = placement::tensor_override(said, text, n_gpus)?;
            let buffer = text.rsplit_once('=').map_or("CPU", |(_, buffer)| buffer);
            let pattern = given.pattern.as_str();
            file.overrides
                .push(vramfit::TensorOverride::new(pattern, buffer));
        }
    }
    file.cpu_moe = low.is_on("spec-draft-cpu-moe").then_some(true);
    file.backend_sampling = low.switch("spec-draft-backend-sampling");
    Ok(Some(file))
}
